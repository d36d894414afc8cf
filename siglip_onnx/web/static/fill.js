// Fill the table: classify the rows without results, in batches.

import { classify } from "./api.js";
import { currentImage, listen, state, updateRows } from "./store.js";

const BATCH_SIZE = 64;
let busy = false;

async function fill() {
  if (busy) return;
  busy = true;
  try {
    for (;;) {
      const image = currentImage();
      const rows = state.rows.filter(({ results, problem }) => !results && !problem).slice(0, BATCH_SIZE);
      if (!image?.id || !rows.length) return;
      await classifyRows(image, rows, state.template);
    }
  } finally {
    busy = false;
  }
}

async function classifyRows(image, rows, template) {
  const indices = new Map(rows.map((row, number) => [row.key, number]));
  const isCurrent = (row) => indices.has(row.key) && row.text === rows[indices.get(row.key)].text && state.template === template;
  try {
    const reply = await classify([image], rows.map(({ text }) => text), template);
    const results = rows.map((_, number) => resultsOf(reply, number));
    updateRows(image.key, (row) => (isCurrent(row) ? { ...row, results: results[indices.get(row.key)] } : row));
  } catch (error) {
    updateRows(image.key, (row) => (isCurrent(row) ? { ...row, problem: error.message } : row));
  }
}

/** Return {model: {logit, ms}} of one text. */
function resultsOf(reply, number) {
  const times = new Map(reply.texts.map(({ model, text_ms: ms }) => [model, ms[number]]));
  const entries = reply.results[0].models.map(({ model, matches }) => [
    model,
    { logit: matches[number].logit, ms: times.get(model) },
  ]);
  return Object.fromEntries(entries);
}

export function retry(key) {
  updateRows(state.current, (row) => (row.key === key ? { ...row, problem: null } : row));
}

export const startFilling = () => listen(fill);
