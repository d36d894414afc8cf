// The table of texts: one row per text, one line per model in each cell.

import { retry } from "./fill.js";
import { byId, make } from "./dom.js";
import { milliseconds, shares, sigmoid, threeDigits } from "./format.js";
import { t } from "./i18n.js";
import { changed, isTooLong, listen, newRow, setRows, state } from "./store.js";
import { notify } from "./toast.js";
import { canShowWhere, isShown, toggleWhere } from "./where.js";

const COLUMNS = ["text", "probability", "logit", "share", "ms"];
/** Number of rows and columns that are shown: with more, a browser takes seconds for each change. */
export const MAX_SHOWN = 1000;
const SINGLE = "single_label_classification";
// Columns without a meaning for classifiers.
const HIDDEN = { [SINGLE]: ["share", "ms"], multi_label_classification: ["share", "ms"], regression: ["probability", "share", "ms"] };
let editing = null; // key of the row

export const shows = (column) => !HIDDEN[state.problem]?.includes(column);

/** Return a probability and its complement: the sigmoid of the logit, or the share if exactly one label is right. */
export const probabilityOf = (logit, share) => (state.problem === SINGLE ? share : sigmoid(logit));

export const shortName = (model) =>
  new Set(state.models.map((id) => id.split("/")[0])).size > 1 ? model : model.split("/").slice(1).join("/");

/** Return each row's softmax share within the table by one model. */
export function sharesOf(rows, model) {
  const complete = rows.filter(({ results }) => results?.[model]);
  const values = complete.length ? shares(complete.map(({ results }) => results[model].logit)) : [];
  return new Map(complete.map((row, index) => [row.key, values[index]]));
}

/** Return the rows in the order shown. */
export function sortedRows() {
  const { by, down } = state.sort;
  if (by === "added") return state.rows;
  const model = state.models[0];
  const value = (row) => (by === "text" ? row.text : by === "ms" ? row.results?.[model]?.ms : row.results?.[model]?.logit);
  const { compare: compareTexts } = new Intl.Collator(document.documentElement.lang);
  const compare = by === "text" ? compareTexts : (a, b) => a - b;
  return state.rows.toSorted((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
    return down ? compare(y, x) : compare(x, y);
  });
}

function sortBy(column) {
  const first = column !== "text"; // numbers: largest first
  if (state.sort.by !== column) state.sort = { by: column, down: first };
  else if (state.sort.down === first) state.sort = { by: column, down: !first };
  else state.sort = { by: "added", down: false };
  changed();
}

function drawHead() {
  const row = byId("table").tHead.rows[0];
  if (!row.cells.length) {
    const cells = COLUMNS.map((column) =>
      make(
        "th",
        { role: "columnheader", scope: "col", className: ["logit", "share", "ms"].includes(column) ? "number" : "" },
        make("button", { type: "button", onclick: () => sortBy(column), "data-column": column }),
      ),
    );
    const model = make("th", { role: "columnheader", scope: "col", className: "model" });
    const actions = make("th", { role: "columnheader", scope: "col" }, make("span", { className: "visually-hidden" }));
    row.append(cells[0], model, ...cells.slice(1), actions);
  }
  for (const button of row.querySelectorAll("button")) {
    const { by, down } = state.sort;
    const { column } = button.dataset;
    button.textContent = t(column === "text" && state.labels.length ? "label" : `column_${column}`);
    button.parentElement.hidden = !shows(column);
    button.parentElement.ariaSort = by !== button.dataset.column ? "none" : down ? "descending" : "ascending";
  }
  const [, model] = row.cells;
  model.textContent = t("model");
  model.hidden = state.models.length < 2;
  row.cells[row.cells.length - 1].firstChild.textContent = t("actions");
}

/** Return one line per model, with the model's name for screen readers. */
function lines(row, draw) {
  return state.models.map((model) => {
    const name = state.models.length > 1 ? make("span", { className: "visually-hidden", textContent: `${shortName(model)}: ` }) : null;
    const result = row.results?.[model];
    return make("span", { className: "line" }, name, result ? draw(result, model) : "…");
  });
}

function bar(probability) {
  const fill = make("div", { className: "fill" });
  fill.style.setProperty("--p", probability[0]);
  return make(
    "span",
    { className: "bar" },
    make("span", { className: "track", "aria-hidden": "true" }, fill),
    make("span", { textContent: threeDigits(probability) }),
  );
}

function drawRow(row, shareOf) {
  const cell = (className, column, ...content) =>
    make("td", { role: "cell", className, "data-label": t(`column_${column}`) }, ...content);
  const element = make("tr", { role: "row", className: row.results ? "" : "pending", "data-key": row.key });
  const truncated = Object.values(row.results ?? {}).some((result) => result.truncated);
  const note = truncated ? make("span", { className: "problem", textContent: t("truncated") }) : null;
  element.append(cell("text", "text", ...(editing === row.key ? [editor(row)] : [row.text, note ? " " : "", note ?? ""])));
  if (row.problem) {
    const again = make("button", { type: "button", textContent: t("try_again"), onclick: () => retry(row.key) });
    const width = COLUMNS.length - 1 + (state.models.length > 1);
    element.append(make("td", { role: "cell", className: "problem", colspan: width }, row.problem, " ", again));
  } else {
    if (state.models.length > 1) element.append(cell("model", "text", ...lines(row, (_, model) => shortName(model))));
    element.append(
      cell("probability", "probability", ...lines(row, ({ logit }, model) => bar(probabilityOf(logit, shareOf[model].get(row.key))))),
      cell("number", "logit", ...lines(row, ({ logit }) => logit.toFixed(2))),
      cell("number", "share", ...lines(row, (_, model) => threeDigits(shareOf[model].get(row.key)))),
      cell("number", "ms", ...lines(row, ({ ms }) => (ms ? milliseconds(ms) : t("cached")))),
    );
  }
  for (const column of COLUMNS) {
    if (!shows(column)) element.querySelector(`td[data-label="${t(`column_${column}`)}"]`)?.remove();
  }
  element.append(make("td", { role: "cell", className: "actions" }, ...actions(row)));
  return element;
}

function actions(row) {
  const button = (action, onclick, properties) =>
    make("button", {
      type: "button",
      textContent: t(action),
      onclick,
      "aria-label": t(`${action}_row`, { text: row.text }),
      "data-action": action,
      ...properties,
    });
  const where = button("where", () => toggleWhere(row), { "aria-pressed": String(isShown(row)), disabled: !canShowWhere() });
  if (state.labels.length) return [where];
  return [where, button("edit", () => edit(row.key)), button("delete", () => remove(row))];
}

function edit(key) {
  editing = key;
  changed();
  const input = rowElement(key).querySelector("input");
  input.focus();
  input.select();
}

function editor(row) {
  const input = make("input", { type: "text", value: row.text, "aria-label": t("edit_row", { text: row.text }) });
  const finish = (save, focus) => {
    if (editing !== row.key) return;
    editing = null;
    const text = input.value.trim();
    if (save && isTooLong(text)) {
      notify(t("text_too_long", { maximum: state.limits.text_characters }));
      save = false;
    }
    if (save && text && text !== row.text) {
      setRows(state.rows.map((other) => (other.key === row.key ? { ...newRow(text), key: row.key } : other)));
    } else changed();
    if (focus) focusAction(row.key, "edit");
  };
  input.onkeydown = (event) => {
    if (event.isComposing) return; // Enter selects a word of the input method
    if (event.key !== "Enter" && event.key !== "Escape") return;
    event.preventDefault(); // otherwise Enter would press the button that is focused next
    finish(event.key === "Enter", true);
  };
  input.onblur = () => finish(true, false);
  return input;
}

function remove(row) {
  const shown = sortedRows();
  const index = shown.findIndex(({ key }) => key === row.key);
  const next = shown[index + 1] ?? shown[index - 1];
  setRows(state.rows.filter(({ key }) => key !== row.key));
  notify(t("deleted", { text: row.text }), undoAction());
  if (next) focusAction(next.key, "delete");
  else byId("text").focus();
}

let undoAction = () => null;
/** Set the undo action that notifications offer. */
export const setUndoAction = (action) => {
  undoAction = action;
};

const rowElement = (key) => byId("table").querySelector(`tr[data-key="${key}"]`);
const focusAction = (key, action, options) => rowElement(key)?.querySelector(`[data-action="${action}"]`)?.focus(options);

export function drawTable() {
  const table = byId("table");
  const focused = document.activeElement?.closest("#table tbody tr") && document.activeElement;
  const position = focused?.dataset.action && [focused.closest("tr").dataset.key, focused.dataset.action];
  drawHead();
  table.hidden = state.rows.length === 0;
  table.classList.toggle("compare", state.models.length > 1);
  byId("empty").hidden = state.rows.length > 0;
  const shareOf = Object.fromEntries(state.models.map((model) => [model, sharesOf(state.rows, model)]));
  // Results that arrive while a row is being edited must not replace its input.
  if (editing === null || !table.querySelector("td.text input")) {
    const shown = sortedRows().slice(0, MAX_SHOWN);
    table.tBodies[0].replaceChildren(...shown.map((row) => drawRow(row, shareOf)));
  }
  if (position) focusAction(...position, { preventScroll: true });
  drawDifference(shareOf);
  const note = byId("surplus");
  note.hidden = state.rows.length <= MAX_SHOWN;
  note.textContent = t("rows_shown", { maximum: MAX_SHOWN, count: state.rows.length });
}

/** Show the largest difference between the models' probabilities. */
function drawDifference(shareOf) {
  const largest = state.rows.reduce((maximum, { key, results }) => {
    const values = state.models.map((model) => results?.[model] && probabilityOf(results[model].logit, shareOf[model].get(key))[0]);
    if (values.length < 2 || values.includes(undefined) || values.includes(null)) return maximum;
    return Math.max(maximum, Math.max(...values) - Math.min(...values));
  }, -1);
  const note = byId("difference");
  note.hidden = largest < 0 || !shows("probability");
  if (largest >= 0) {
    const value = largest === 0 ? "0" : threeDigits([largest, 1 - largest]);
    note.textContent = t("difference", { models: state.models.map(shortName).join(", "), value });
  }
}

export const startTable = () => listen(drawTable);
