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
      const size = state.labels.length || Math.min(BATCH_SIZE, state.limits.texts); // a classifier answers with all labels at once
      const rows = state.rows.filter(({ results, problem }) => !results && !problem).slice(0, size);
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
    const reply = await classify([image], state.labels.length ? null : rows.map(({ text }) => text), template);
    const numbers = new Map(state.labels.map((label, number) => [label, number]));
    const results = rows.map(({ text }, number) => resultsOf(reply, numbers.get(text) ?? number));
    updateRows(image.key, (row) => (isCurrent(row) ? { ...row, results: results[indices.get(row.key)] } : row));
  } catch (error) {
    updateRows(image.key, (row) => (isCurrent(row) ? { ...row, problem: error.message } : row));
  }
}

/** Return {model: {logit, ms, truncated}} of one text. */
function resultsOf(reply, number) {
  const texts = new Map(reply.texts.map(({ model, text_ms: ms, truncated }) => [model, { ms: ms[number], truncated: truncated[number] }]));
  const entries = reply.results[0].models.map(({ model, matches }) => [
    model,
    { logit: matches[number].logit, ...texts.get(model) },
  ]);
  return Object.fromEntries(entries);
}

export function retry(key) {
  updateRows(state.current, (row) => (row.key === key ? { ...row, problem: null } : row));
}

export const startFilling = () => listen(fill);
