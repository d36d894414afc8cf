// Where in the image the evidence for a text lies: an occlusion map over the image, of one row at a time.

import { explain } from "./api.js";
import { byId } from "./dom.js";
import { t } from "./i18n.js";
import { changed, currentImage, listen, state } from "./store.js";
import { notify } from "./toast.js";

const RAISES = [220, 30, 30];
const LOWERS = [30, 80, 230];
const STRONGEST = 0.65; // opacity
let shown = null; // {image, key and text of the row, template, controller, runs: [done, total], map}

export const isShown = (row) => shown?.key === row.key;

/** Return whether there is an image to draw on. */
export function canShowWhere() {
  const image = currentImage();
  return Boolean(image?.id) && !image.cannotBeShown;
}

/** Show the map of a row, which takes tens of runs of the model unless it was shown before; or hide it. */
export async function toggleWhere({ key, text }) {
  const again = shown?.key === key;
  hide();
  if (again) return changed();
  const image = currentImage();
  const { template } = state;
  const own = { image, key, text, template, controller: new AbortController(), runs: null, map: null };
  image.maps ??= new Map();
  const name = JSON.stringify([text, template]);
  own.map = image.maps.get(name) ?? null;
  shown = own;
  changed();
  bringIntoView();
  if (own.map) return;
  const onProgress = (...runs) => {
    own.runs = runs;
    if (shown === own) drawProgress();
  };
  try {
    const options = { signal: own.controller.signal, onProgress };
    own.map = await explain(image, text, state.labels.length ? null : template, state.models[0], options);
    image.maps.set(name, own.map);
  } catch (error) {
    if (shown !== own) return; // it was cancelled
    shown = null;
    notify(error.message);
  }
  changed();
}

function hide() {
  shown?.controller.abort();
  shown = null;
}

/** On a phone the image may be far above the row. */
function bringIntoView() {
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  byId("image-panel").scrollIntoView({ block: "nearest", behavior: calm ? "auto" : "smooth" });
}

/** Hide a map whose image, row or template has changed. */
function check() {
  if (!shown) return;
  const { image, key, text, template } = shown;
  const isCurrent = image === currentImage() && template === state.template && !image.cannotBeShown;
  if (!isCurrent || !state.rows.some((row) => row.key === key && row.text === text)) hide();
}

function draw() {
  check();
  const map = shown?.map;
  byId("where-part").hidden = !shown;
  byId("where-map").hidden = !map;
  byId("shown").classList.toggle("mapped", Boolean(map));
  byId("where-progress").hidden = Boolean(map);
  byId("where-note").hidden = !map;
  byId("where-stop").textContent = t(map ? "where_hide" : "where_cancel");
  say(map ? caption(map) : shown ? t("where_running", { text: shown.text }) : "");
  if (!map) return drawProgress();
  byId("where-note").textContent = t("where_note", { count: map.num_runs });
  drawMap(byId("where-map"), map.texts[0].effects);
}

/** Set the text only if it changes, since screen readers announce it. */
function say(text) {
  const element = byId("where-text");
  if (element.textContent !== text) element.textContent = text;
}

function caption({ model, texts: [{ text, strongest, effects }] }) {
  const values = effects.flat();
  const [x, y] = [strongest.x, strongest.y].map((share) => Math.round(100 * share));
  const numbers = { raised: Math.max(0, ...values).toFixed(2), lowered: Math.max(0, -Math.min(...values)).toFixed(2), x, y };
  const about = state.models.length > 1 ? `${model}: ` : "";
  return about + t("where_done", { text, ...numbers });
}

function drawProgress() {
  const progress = byId("where-progress");
  if (shown?.runs) [progress.value, progress.max] = shown.runs;
  else progress.removeAttribute("value"); // not known yet
}

/** Draw effects by rows: red raises the logit, blue lowers it, relative to the strongest. */
function drawMap(canvas, effects) {
  const values = effects.flat();
  const most = Math.max(1e-6, ...values.map(Math.abs));
  const grid = new ImageData(effects[0].length, effects.length);
  values.forEach((value, number) => {
    const opacity = Math.round((255 * STRONGEST * Math.abs(value)) / most);
    grid.data.set([...(value > 0 ? RAISES : LOWERS), opacity], 4 * number);
  });
  const small = document.createElement("canvas");
  [small.width, small.height] = [grid.width, grid.height];
  small.getContext("2d").putImageData(grid, 0, 0);
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
}

export function startWhere() {
  byId("where-stop").onclick = () => {
    const { key } = shown;
    hide();
    changed();
    byId("table").querySelector(`tr[data-key="${key}"] [data-action="where"]`)?.focus();
  };
  listen(draw);
}
