// Filling the table: whatever row has no answer yet is asked, a few at a time.

import { classify } from "./api.js";
import { currentPicture, listen, state, updateRows } from "./store.js";

const AT_ONCE = 64;
let busy = false;

async function fill() {
  if (busy) return;
  busy = true;
  try {
    for (;;) {
      const picture = currentPicture();
      const rows = state.rows.filter(({ results, problem }) => !results && !problem).slice(0, AT_ONCE);
      if (!picture?.id || !rows.length) return;
      await answer(picture, rows, state.template);
    }
  } finally {
    busy = false;
  }
}

async function answer(picture, rows, template) {
  const asked = new Map(rows.map((row, number) => [row.key, number]));
  const isAsked = (row) => asked.has(row.key) && row.text === rows[asked.get(row.key)].text && state.template === template;
  try {
    const reply = await classify([picture], rows.map(({ text }) => text), template);
    const answers = rows.map((_, number) => resultsOf(reply, number));
    updateRows(picture.key, (row) => (isAsked(row) ? { ...row, results: answers[asked.get(row.key)] } : row));
  } catch (error) {
    updateRows(picture.key, (row) => (isAsked(row) ? { ...row, problem: error.message } : row));
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

export const startAsking = () => listen(fill);
