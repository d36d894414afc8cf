// What the page knows, changed in one place, with undo. Rows are never changed, only replaced.

export const state = {
  models: [], // ids
  limits: {},
  pictures: [], // {key, name, blob, url, id, width, height, decodeMs, visionMs, problem}
  current: null, // key of the picture shown
  rows: [], // {key, text, results: {model: {logit, ms}} or null, problem}
  template: "{}",
  sort: { by: "added", down: false },
};
const tables = new Map(); // rows of the pictures that are not shown, by key
const past = [];
const listeners = [];
let keys = 0;

export const newKey = () => ++keys;
export const listen = (listener) => listeners.push(listener);
export const currentPicture = () => state.pictures.find(({ key }) => key === state.current);
export const canUndo = () => past.length > 0;

export function changed() {
  for (const listener of listeners) listener();
}

/** Remember how things are, before something that can be undone. */
function remember() {
  const { current, rows, template } = state;
  past.push({ current, rows, template, tables: new Map(tables) });
  if (past.length > 100) past.shift();
}

export function undo() {
  const before = past.pop();
  if (!before) return;
  ({ current: state.current, rows: state.rows, template: state.template } = before);
  if (!currentPicture()) state.current = state.pictures.at(-1)?.key ?? null; // it was no picture after all
  tables.clear();
  for (const [key, rows] of before.tables) tables.set(key, rows);
  changed();
}

export function setRows(rows, { canBeUndone = true } = {}) {
  if (canBeUndone) remember();
  state.rows = rows;
  changed();
}

/** Put new texts at the end of the table; return how many were there already. */
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
  tables.clear(); // answers of another template
  state.rows = state.rows.map(({ text }) => newRow(text));
  changed();
}

/** Show a picture with its own table, which for a new one is empty; return whether rows went out of sight. */
export function show(key) {
  if (key === state.current) return false;
  const first = state.current === null;
  const hidden = !first && state.rows.length > 0;
  if (!first) {
    remember();
    tables.set(state.current, state.rows);
    state.rows = tables.get(key) ?? [];
  }
  state.current = key;
  changed();
  return hidden && state.rows.length === 0;
}

/** Forget a picture that turned out to be none, and show again what was shown before. */
export function drop(key, before) {
  state.pictures = state.pictures.filter((picture) => picture.key !== key);
  if (state.current === key) {
    state.current = state.pictures.some((picture) => picture.key === before) ? before : null;
    if (state.current !== null) state.rows = tables.get(state.current) ?? state.rows;
  }
  changed();
}

/** Replace the rows of a picture, shown or not, by what a function makes of them. */
export function updateRows(key, replace) {
  if (key === state.current) state.rows = state.rows.map(replace);
  else if (tables.has(key)) tables.set(key, tables.get(key).map(replace));
  changed();
}
