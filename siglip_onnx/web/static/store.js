// State of the page, with undo. Rows are immutable and replaced as a whole.

export const state = {
  models: [], // ids
  labels: [], // of classifiers, which take no texts
  problem: "", // problem_type of classifiers
  limits: {},
  images: [], // {key, name, blob, url, id, width, height, decodeMs, visionMs, problem}
  current: null, // key of the image shown
  rows: [], // {key, text, results: {model: {logit, ms, truncated}} or null, problem}
  template: "{}",
  sort: { by: "added", down: false },
};
const tables = new Map(); // rows of the images that are not shown, by key
const undoStack = [];
const listeners = [];
let keys = 0;

export const newKey = () => ++keys;
export const listen = (listener) => listeners.push(listener);
export const currentImage = () => state.images.find(({ key }) => key === state.current);
/** Whether a text has more characters than the server takes, which counts code points. */
export const isTooLong = (text) => [...text].length > state.limits.text_characters;
export const canUndo = () => undoStack.length > 0;

export function changed() {
  for (const listener of listeners) listener();
}

/** Save the state before a change that can be undone. */
function remember() {
  const { current, rows, template } = state;
  undoStack.push({ current, rows, template, tables: new Map(tables) });
  if (undoStack.length > 100) undoStack.shift();
}

export function undo() {
  const before = undoStack.pop();
  if (!before) return;
  ({ current: state.current, rows: state.rows, template: state.template } = before);
  if (!currentImage()) state.current = state.images.at(-1)?.key ?? null; // the file was not an image
  tables.clear();
  for (const [key, rows] of before.tables) tables.set(key, rows);
  changed();
}

export function setRows(rows, { canBeUndone = true } = {}) {
  if (canBeUndone) remember();
  state.rows = rows;
  changed();
}

/** Append new texts to the table; return how many were already present. */
export function addTexts(texts) {
  const present = new Set(state.rows.map(({ text }) => text));
  const fresh = [...new Set(texts)].filter((text) => !present.has(text));
  if (fresh.length) setRows([...state.rows, ...fresh.map(newRow)]);
  return texts.length - fresh.length;
}

export const newRow = (text) => ({ key: newKey(), text, results: null, problem: null });

export function setTemplate(template) {
  remember();
  state.template = template;
  tables.clear(); // results of another template
  state.rows = state.rows.map(({ text }) => newRow(text));
  changed();
}

/** Show an image with its own table, empty for a new image; return whether rows were hidden. */
export function show(key) {
  if (key === state.current) return false;
  const first = state.current === null;
  const hidden = !first && state.rows.length > 0;
  if (!first) {
    remember();
    tables.set(state.current, state.rows);
    state.rows = tables.get(key) ?? state.labels.map(newRow);
  }
  state.current = key;
  changed();
  return hidden && state.rows.length === 0;
}

/** Remove an image that cannot be read, and show the one before. */
export function drop(key, before) {
  state.images = state.images.filter((image) => image.key !== key);
  if (state.current === key) {
    state.current = state.images.some((image) => image.key === before) ? before : null;
    if (state.current !== null) state.rows = tables.get(state.current) ?? state.rows;
  }
  changed();
}

/** Apply a function to each row of an image, shown or not. */
export function updateRows(key, replace) {
  if (key === state.current) state.rows = state.rows.map(replace);
  else if (tables.has(key)) tables.set(key, tables.get(key).map(replace));
  changed();
}

/** The limits of an image as the placeholders of texts. */
export const limitValues = () => ({
  megabytes: Math.floor(state.limits.image_bytes / 1e6),
  megapixels: Math.floor(state.limits.image_pixels / 1e6),
});
