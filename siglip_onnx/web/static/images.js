// Image sources, the image shown, and the images of this tab.

import { embedImage, fetchImage, getFile } from "./api.js";
import { byId, make } from "./dom.js";
import { milliseconds } from "./format.js";
import { hasText, language, t } from "./i18n.js";
import { changed, currentImage, drop, limitValues, listen, newKey, setRows, show, state, newRow } from "./store.js";
import { notify } from "./toast.js";

const MAX_IMAGES = 64; // of this tab

/** Add images to this tab, show the first, and embed each on the server. */
export async function addImages(blobs, { quietly = false, undo, showFirst = true } = {}) {
  const before = state.current;
  const surplus = Math.max(0, state.images.length + blobs.length - MAX_IMAGES);
  const added = blobs.slice(0, MAX_IMAGES).map(register);
  if (added.length && showFirst) showImage(added[0].key, { quietly, undo });
  if (surplus) notify(t("too_many_images", { maximum: MAX_IMAGES, count: surplus }));
  for (const image of added) await load(image, before);
}

function register(blob) {
  const image = { key: newKey(), name: blob.name ?? t("image"), blob, url: URL.createObjectURL(blob), id: null };
  state.images = [...state.images, image];
  while (state.images.length > MAX_IMAGES) {
    const oldest = state.images.find(({ key }) => key !== state.current && key !== image.key);
    URL.revokeObjectURL(oldest.url);
    state.images = state.images.filter(({ key }) => key !== oldest.key);
  }
  return image;
}

async function load(image, before) {
  try {
    if (image.blob.size > state.limits.image_bytes) throw new Error(t("error_too_large", limitValues()));
    const reply = await embedImage(image.blob);
    const { id, width, height, decode_ms: decodeMs } = reply.images[0];
    const visionMs = reply.embeddings.map(({ ms }) => ms[0]).reduce((sum, ms) => sum + ms, 0);
    Object.assign(image, { id, width, height, decodeMs, visionMs });
    changed();
  } catch (error) {
    drop(image.key, before);
    notify(t("image_failed", { name: image.name, problem: error.message }));
  }
}

/** Show an image; offer to restore what this hides. */
export function showImage(key, { quietly = false, undo } = {}) {
  const texts = state.rows.map(({ text }) => text);
  if (!show(key) || quietly) return;
  const addSameTexts = () => setRows(texts.map(newRow));
  notify(t("table_cleared"), [t("add_same_texts"), addSameTexts], ...(undo ? [undo()] : []));
}

/** Return the file name in a URL; a data: URL has none. */
const nameOf = (url) => (url.startsWith("data:") ? t("image") : new URL(url).pathname.split("/").pop() || url);

/** Fetch an image through the server. */
export async function addFromUrl(url, options) {
  const button = byId("url-form").querySelector("button");
  button.disabled = true;
  try {
    const blob = await fetchImage(url);
    await addImages([new File([blob], nameOf(url))], options);
    byId("url").value = "";
  } catch (error) {
    notify(t("image_failed", { name: nameOf(url), problem: error.message }));
  } finally {
    button.disabled = false;
  }
}

/** Add sample images by file name; those already in the tab are not loaded again. */
export async function addSamples(names, options) {
  const find = (name) => state.images.find((image) => image.name === name && image.id);
  const missing = names.filter((name) => !find(name));
  const blobs = await Promise.all(
    missing.map(async (name) => {
      const blob = await (await getFile(`samples/${name}`)).blob();
      return new File([blob], name, { type: blob.type });
    }),
  );
  const first = find(names[0]);
  if (first) showImage(first.key, options);
  await addImages(blobs, { ...options, showFirst: !first });
}

/** Return the title of an image: of a sample in the page's language, otherwise its file name. */
export function title(name) {
  const stem = name.replace(/\.[a-z]+$/, "");
  return hasText(`sample_${stem}`) ? t(`sample_${stem}`) : stem.replaceAll("_", " ");
}

function facts({ id, name, width, height, decodeMs, visionMs }) {
  if (!id) return t("embedding");
  if (!decodeMs) return t("image_facts_cached", { name, width, height });
  return t("image_facts", { name, width, height, decode: milliseconds(decodeMs), vision: milliseconds(visionMs) });
}

function drawImagePanel() {
  const image = currentImage();
  const element = byId("image");
  byId("drop-hint").hidden = Boolean(image);
  byId("drop").classList.toggle("busy", Boolean(image && !image.id));
  byId("image-problem").hidden = !image?.cannotBeShown;
  if (image?.cannotBeShown) byId("image-problem").textContent = t("cannot_be_shown");
  element.hidden = !image || Boolean(image.cannotBeShown);
  if (image && element.src !== image.url) element.src = image.url;
  if (image) element.alt = title(image.name);
  byId("image-facts").textContent = image ? facts(image) : "";
  byId("waiting").hidden = Boolean(image) || state.rows.length === 0;
}

function thumb(name, source, pressed, onclick) {
  const label = title(name);
  const thumbnail = make("img", { src: source, alt: label, loading: "lazy", width: 56, height: 56 });
  return make("button", { type: "button", title: label, onclick, "aria-pressed": pressed === null ? null : String(pressed), "data-name": name }, thumbnail);
}

function drawHistory(undo) {
  byId("history-part").hidden = state.images.length < 2;
  const focused = document.activeElement?.closest("#history button")?.dataset.name;
  const thumbs = state.images.map(({ key, name, url }) =>
    thumb(name, url, key === state.current, () => showImage(key, { undo })),
  );
  byId("history").replaceChildren(...thumbs);
  if (focused) thumbs.find((button) => button.dataset.name === focused)?.focus();
}

function drawSamples(names, undo) {
  if (byId("samples").lang === language) return; // nothing to redraw
  byId("samples").lang = language;
  byId("samples").replaceChildren(
    ...names.map((name) => thumb(name, `samples/${name}`, null, () => addSamples([name], { undo }))),
  );
}

/** Connect file input, drag and drop, paste, URL and samples. */
export function startImages(samples, undo) {
  listen(drawImagePanel);
  listen(() => drawSamples(samples, undo));
  listen(() => drawHistory(undo));
  byId("image").onerror = () => {
    const image = currentImage();
    if (image) image.cannotBeShown = true; // a format that only the server can read
    changed();
  };
  byId("file").onchange = (event) => {
    addImages([...event.target.files], { undo });
    event.target.value = "";
  };
  byId("url-form").onsubmit = (event) => {
    event.preventDefault();
    const url = byId("url").value.trim();
    if (URL.canParse(url)) addFromUrl(url, { undo });
    else notify(t("error_url_refused"));
  };
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])].filter(({ type }) => type.startsWith("image/"));
    if (!files.length) return;
    event.preventDefault();
    addImages(files, { undo });
  });
  startDragAndDrop(undo);
}

function startDragAndDrop(undo) {
  const area = byId("drop");
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    area.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) area.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    area.classList.remove("over");
    const files = [...event.dataTransfer.files];
    const url = event.dataTransfer.getData("text/uri-list").split("\n")[0].trim();
    if (files.length) addImages(files, { undo });
    else if (URL.canParse(url)) addFromUrl(url, { undo });
  });
}
