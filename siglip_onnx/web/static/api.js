// Client of the HTTP API.

import { byId } from "./dom.js";
import { hasText, t } from "./i18n.js";

const MAX_ATTEMPTS = 4;
let key = "";

/** An error of the server, in the page's language if it has a text for its code. */
export class ApiError extends Error {
  constructor(problem) {
    super(hasText(`error_${problem.code}`) ? t(`error_${problem.code}`) : problem.message);
    this.code = problem.code;
  }
}

async function call(path, options = {}, attempts = MAX_ATTEMPTS) {
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch {
    throw new ApiError({ code: "unreachable" });
  }
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({ error: { code: "internal", message: response.statusText } }));
  if (response.status === 401 && attempts > 1) {
    await promptForKey();
    return call(path, options, attempts - 1);
  }
  if (response.status === 429 && attempts > 1) {
    await new Promise((done) => setTimeout(done, 1000 * (error.retry_after_s ?? 1)));
    return call(path, options, attempts - 1);
  }
  throw new ApiError(error);
}

const post = (path, document) =>
  call(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(document) });

export const getModels = async () => (await call("v1/models")).json();

/** Embed an image on the server, which returns the id under which the embedding is cached. */
export async function embedImage(blob) {
  const form = new FormData();
  form.append("images", blob);
  form.append("vectors", "false");
  return (await call("v1/embed/images", { method: "POST", body: form })).json();
}

export const fetchImage = async (url) => (await post("v1/fetch", { url })).blob();

/** Classify images by their ids; images that are no longer in the server's cache are sent again. */
export async function classify(images, texts, template) {
  const send = async () =>
    (await post("v1/classify", { images: images.map(({ id }) => ({ id })), texts, template })).json();
  try {
    return await send();
  } catch (error) {
    if (error.code !== "unknown_image") throw error;
    for (const image of images) image.id = (await embedImage(image.blob)).images[0].id;
    return send();
  }
}

function promptForKey() {
  const dialog = byId("key-dialog");
  dialog.showModal();
  return new Promise((done) => {
    dialog.onclose = () => {
      key = byId("key").value;
      done();
    };
  });
}
