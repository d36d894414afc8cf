// Take an image with the camera, or explain why the browser does not provide one.

import { byId } from "./dom.js";
import { t } from "./i18n.js";
import { addImages } from "./images.js";
import { state } from "./store.js";

const MOST_PIXELS = 16384; // of a side: the largest photo that the camera takes
let stream = null;

async function open() {
  const dialog = byId("camera-dialog");
  explain(null);
  dialog.showModal();
  // Browsers provide the camera only on https and localhost.
  if (!window.isSecureContext || !navigator.mediaDevices) return explain("camera_insecure");
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: MOST_PIXELS }, height: { ideal: MOST_PIXELS } } });
  } catch (error) {
    return explain({ NotAllowedError: "camera_denied", NotFoundError: "camera_none" }[error.name] ?? "camera_failed");
  }
  if (!dialog.open) return stop();
  byId("video").srcObject = stream;
  byId("camera-take").focus();
}

/** Show why the camera is not available, and offer a phone's own camera app. */
function explain(key) {
  const problem = byId("camera-problem");
  problem.hidden = key === null;
  problem.textContent = key === null ? "" : t(key);
  byId("video").hidden = byId("camera-take").hidden = key !== null;
  byId("capture-label").hidden = key === null;
  byId("capture").disabled = key === null;
}

/** Return a photo as PNG, or as JPEG of the same size in pixels if the PNG would be too large for the server. */
async function encode(canvas) {
  const blob = await canvas.convertToBlob({ type: "image/png" });
  return blob.size <= state.limits.image_bytes ? blob : canvas.convertToBlob({ type: "image/jpeg", quality: 0.95 });
}

function stop() {
  for (const track of stream?.getTracks() ?? []) track.stop();
  stream = null;
  byId("video").srcObject = null;
}

export function startCamera(undo) {
  const dialog = byId("camera-dialog");
  byId("camera").onclick = open;
  byId("camera-close").onclick = () => dialog.close();
  dialog.onclose = stop;
  byId("camera-take").onclick = () => {
    const video = byId("video");
    if (!video.videoWidth) return;
    const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
    canvas.getContext("2d").drawImage(video, 0, 0);
    dialog.close();
    encode(canvas).then((blob) => addImages([new File([blob], `${t("camera")}.${blob.type.split("/")[1]}`, { type: blob.type })], { undo }));
  };
  byId("capture").onchange = (event) => {
    dialog.close();
    addImages([...event.target.files], { undo });
    event.target.value = "";
  };
}
