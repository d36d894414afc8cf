// Where pictures come from, the one that is shown, and those of this tab.

import { fetchPicture, see } from "./api.js";
import { byId, make } from "./dom.js";
import { milliseconds } from "./format.js";
import { known, language, t } from "./i18n.js";
import { changed, currentPicture, drop, listen, newKey, setRows, show, state, newRow } from "./store.js";
import { tell } from "./toast.js";

const MAX_PICTURES = 64; // of this tab

/** Take pictures in, show the first, and let the server see each. */
export async function addPictures(blobs, { quietly = false, undo, showFirst = true } = {}) {
  const added = blobs.slice(0, MAX_PICTURES).map(register);
  const before = state.current;
  if (added.length && showFirst) showPicture(added[0].key, { quietly, undo });
  for (const picture of added) await load(picture, before);
}

function register(blob) {
  const picture = { key: newKey(), name: blob.name ?? t("picture"), blob, url: URL.createObjectURL(blob), id: null };
  state.pictures = [...state.pictures, picture];
  while (state.pictures.length > MAX_PICTURES) {
    const oldest = state.pictures.find(({ key }) => key !== state.current && key !== picture.key);
    URL.revokeObjectURL(oldest.url);
    state.pictures = state.pictures.filter(({ key }) => key !== oldest.key);
  }
  return picture;
}

async function load(picture, before) {
  try {
    if (picture.blob.size > state.limits.picture_bytes) throw new Error(t("error_too_large"));
    const reply = await see(picture.blob);
    const { id, width, height, decode_ms: decodeMs } = reply.pictures[0];
    const visionMs = reply.embeddings.map(({ ms }) => ms[0]).reduce((sum, ms) => sum + ms, 0);
    Object.assign(picture, { id, width, height, decodeMs, visionMs });
    changed();
  } catch (error) {
    drop(picture.key, before);
    tell(t("picture_failed", { name: picture.name, problem: error.message }));
  }
}

/** Show a picture; what its going away hides can be had back. */
export function showPicture(key, { quietly = false, undo } = {}) {
  const texts = state.rows.map(({ text }) => text);
  if (!show(key) || quietly) return;
  const askAgain = () => setRows(texts.map(newRow));
  tell(t("table_cleared"), [t("ask_same_texts"), askAgain], ...(undo ? [undo()] : []));
}

/** Fetch a picture through the server. */
export async function addFromUrl(url, options) {
  const button = byId("url-form").querySelector("button");
  button.disabled = true;
  try {
    const blob = await fetchPicture(url);
    await addPictures([new File([blob], new URL(url).pathname.split("/").pop() || url)], options);
    byId("url").value = "";
  } catch (error) {
    tell(t("picture_failed", { name: url, problem: error.message }));
  } finally {
    button.disabled = false;
  }
}

/** Take sample pictures in by file name; what is in the tab already is not loaded twice. */
export async function addSamples(names, options) {
  const find = (name) => state.pictures.find((picture) => picture.name === name && picture.id);
  const missing = names.filter((name) => !find(name));
  const blobs = await Promise.all(
    missing.map(async (name) => {
      const blob = await (await fetch(`samples/${name}`)).blob();
      return new File([blob], name, { type: blob.type });
    }),
  );
  const first = find(names[0]);
  if (first) showPicture(first.key, options);
  await addPictures(blobs, { ...options, showFirst: !first });
}

/** Return what a picture is called: samples in the page's language, others as their file. */
export function title(name) {
  const stem = name.replace(/\.[a-z]+$/, "");
  return known(`sample_${stem}`) ? t(`sample_${stem}`) : stem.replaceAll("_", " ");
}

function drawPicture() {
  const picture = currentPicture();
  const image = byId("picture");
  byId("drop-hint").hidden = Boolean(picture);
  byId("drop").classList.toggle("busy", Boolean(picture && !picture.id));
  byId("picture-problem").hidden = !picture?.unseen;
  if (picture?.unseen) byId("picture-problem").textContent = t("not_shown");
  image.hidden = !picture || Boolean(picture.unseen);
  if (picture && image.src !== picture.url) image.src = picture.url;
  if (picture) image.alt = title(picture.name);
  byId("picture-facts").textContent = !picture
    ? ""
    : picture.id
      ? t("picture_facts", { name: picture.name, width: picture.width, height: picture.height, decode: milliseconds(picture.decodeMs), vision: milliseconds(picture.visionMs) })
      : t("looking");
  byId("waiting").hidden = Boolean(picture) || state.rows.length === 0;
}

function thumb(name, source, pressed, onclick) {
  const label = title(name);
  const image = make("img", { src: source, alt: label, loading: "lazy", width: 56, height: 56 });
  return make("button", { type: "button", title: label, onclick, "aria-pressed": pressed === null ? null : String(pressed), "data-name": name }, image);
}

function drawHistory(undo) {
  byId("history-part").hidden = state.pictures.length < 2;
  const focused = document.activeElement?.closest("#history button")?.dataset.name;
  const thumbs = state.pictures.map(({ key, name, url }) =>
    thumb(name, url, key === state.current, () => showPicture(key, { undo })),
  );
  byId("history").replaceChildren(...thumbs);
  if (focused) thumbs.find((button) => button.dataset.name === focused)?.focus();
}

function drawSamples(names, undo) {
  if (byId("samples").lang === language) return; // pictures that are there need not be made again
  byId("samples").lang = language;
  byId("samples").replaceChildren(
    ...names.map((name) => thumb(name, `samples/${name}`, null, () => addSamples([name], { undo }))),
  );
}

/** Connect file input, dropping, pasting, the URL and the samples. */
export function startPictures(samples, undo) {
  listen(drawPicture);
  listen(() => drawSamples(samples, undo));
  listen(() => drawHistory(undo));
  byId("picture").onerror = () => {
    const picture = currentPicture();
    if (picture) picture.unseen = true; // a format that only the server reads
    changed();
  };
  byId("file").onchange = (event) => {
    addPictures([...event.target.files], { undo });
    event.target.value = "";
  };
  byId("url-form").onsubmit = (event) => {
    event.preventDefault();
    const url = byId("url").value.trim();
    if (URL.canParse(url)) addFromUrl(url, { undo });
    else tell(t("error_url_refused"));
  };
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])].filter(({ type }) => type.startsWith("image/"));
    if (!files.length) return;
    event.preventDefault();
    addPictures(files, { undo });
  });
  startDropping(undo);
}

function startDropping(undo) {
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
    if (files.length) addPictures(files, { undo });
    else if (URL.canParse(url)) addFromUrl(url, { undo });
  });
}
