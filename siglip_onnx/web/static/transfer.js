// Export the table as CSV, JSON and Markdown, and share its texts as a link.

import { byId, make } from "./dom.js";
import { sigmoid, threeDigits } from "./format.js";
import { t } from "./i18n.js";
import { addTexts, currentImage, listen, setTemplate, state } from "./store.js";
import { sharesOf, shortName, sortedRows } from "./table.js";
import { notify } from "./toast.js";

const MAX_LINK_CHARACTERS = 8000;
const FIELDS = ["text", "model", "logit", "probability", "relative", "ms"];

/** Return one record per text and model, in the order shown. */
function records() {
  const shareOf = new Map(state.models.map((model) => [model, sharesOf(state.rows, model)]));
  return sortedRows().flatMap(({ key, text, results }) =>
    state.models.filter((model) => results?.[model]).map((model) => {
      const { logit, ms } = results[model];
      return { text, model, logit, probability: sigmoid(logit)[0], relative: shareOf.get(model).get(key)[0], ms };
    }),
  );
}

/** Quote a CSV cell. A spreadsheet would run a text that starts like a formula; shared links may contain one. */
function csvCell(value) {
  if (typeof value === "number") return String(value);
  const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

const toCsv = () =>
  // Without the byte order mark spreadsheets do not recognize UTF-8.
  `\ufeff${[FIELDS, ...records().map((record) => FIELDS.map((field) => csvCell(record[field])))].map((row) => row.join(",")).join("\r\n")}\r\n`;

function toJson() {
  const { name, width, height } = currentImage() ?? {};
  return `${JSON.stringify({ image: { name, width, height }, template: state.template, matches: records() }, null, 2)}\n`;
}

function toMarkdown() {
  const cell = (text) => text.replaceAll("\\", "\\\\").replaceAll("|", "\\|").replaceAll("\n", " ");
  const compare = state.models.length > 1;
  const head = ["text", ...(compare ? ["model"] : []), "logit", "probability", "share"];
  const shareOf = new Map(state.models.map((model) => [model, sharesOf(state.rows, model)]));
  const body = sortedRows().flatMap(({ key, text, results }) =>
    state.models.filter((model) => results?.[model]).map((model) => [
      cell(text),
      ...(compare ? [cell(shortName(model))] : []),
      results[model].logit.toFixed(2),
      threeDigits(sigmoid(results[model].logit)),
      threeDigits(shareOf.get(model).get(key)),
    ]),
  );
  const line = (cells) => `| ${cells.join(" | ")} |`;
  const titles = head.map((name) => (name === "model" ? t("model") : t(`column_${name}`)));
  const rule = head.map((name) => (["text", "model"].includes(name) ? "---" : "---:"));
  return `${[titles, rule, ...body].map(line).join("\n")}\n`;
}

function download(name, type, content) {
  const url = URL.createObjectURL(new Blob([content], { type }));
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

async function copy(text, message) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Browsers provide the clipboard only on https and localhost; this older method works everywhere.
    const area = make("textarea", { value: text });
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    if (!copied) return notify(t("copy_failed"));
  }
  notify(message);
}

/** Return the URL fragment with the texts; it is never sent to the server. */
function toHash() {
  const parameters = new URLSearchParams(state.rows.map(({ text }) => ["text", text]));
  if (state.template !== "{}") parameters.set("template", state.template);
  return state.rows.length ? `#${parameters}` : "";
}

let written = "";
function writeAddress() {
  const hash = toHash();
  if (hash === written || hash.length > MAX_LINK_CHARACTERS) return;
  written = hash;
  history.replaceState(null, "", hash || location.pathname);
}

/** Add the texts of a link to the table. */
function readAddress() {
  if (location.hash === written) return;
  const parameters = new URLSearchParams(location.hash.slice(1));
  const template = parameters.get("template");
  if (template?.includes("{}") && template !== state.template) setTemplate(template);
  addTexts(parameters.getAll("text").map((text) => text.trim()).filter(Boolean).slice(0, state.limits.texts));
}

export function startTransfer() {
  readAddress();
  listen(writeAddress);
  listen(() => {
    const hasResults = state.rows.some(({ results }) => results);
    for (const id of ["csv", "json", "markdown"]) byId(id).disabled = !hasResults;
    byId("link").disabled = state.rows.length === 0;
  });
  addEventListener("hashchange", readAddress);
  byId("csv").onclick = () => download("siglip.csv", "text/csv", toCsv());
  byId("json").onclick = () => download("siglip.json", "application/json", toJson());
  byId("markdown").onclick = () => copy(toMarkdown(), t("copied_markdown"));
  byId("link").onclick = () => {
    const hash = toHash();
    if (hash.length > MAX_LINK_CHARACTERS) return notify(t("link_too_long"));
    return copy(`${location.origin}${location.pathname}${hash}`, t("copied_link"));
  };
}
