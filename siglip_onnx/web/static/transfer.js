// Export the table as CSV, JSON and Markdown, and share its texts as a link.

import { byId, make } from "./dom.js";
import { threeDigits } from "./format.js";
import { t } from "./i18n.js";
import { addTexts, currentImage, isTooLong, listen, setTemplate, state } from "./store.js";
import { probabilityOf, sharesOf, shortName, shows, sortedRows } from "./table.js";
import { notify } from "./toast.js";

const MAX_LINK_CHARACTERS = 8000;
const FIELDS = ["text", "model", "logit", "probability", "relative", "ms"];
const fields = () => FIELDS.filter((field) => shows(field === "relative" ? "share" : field));

/** Return one record per text and model, in the order shown. */
function records() {
  const shareOf = new Map(state.models.map((model) => [model, sharesOf(state.rows, model)]));
  return sortedRows().flatMap(({ key, text, results }) =>
    state.models.filter((model) => results?.[model]).map((model) => {
      const { logit, ms } = results[model];
      const share = shareOf.get(model).get(key);
      const record = { text, model, logit, probability: probabilityOf(logit, share)[0], relative: share[0], ms };
      return Object.fromEntries(fields().map((field) => [field, record[field]]));
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
  `\ufeff${[fields(), ...records().map((record) => fields().map((field) => csvCell(record[field])))].map((row) => row.join(",")).join("\r\n")}\r\n`;

function toJson() {
  const { name, width, height } = currentImage() ?? {};
  return `${JSON.stringify({ image: { name, width, height }, template: state.template, matches: records() }, null, 2)}\n`;
}

function toMarkdown() {
  const cell = (text) => text.replaceAll("\\", "\\\\").replaceAll("|", "\\|").replaceAll(/\r\n?|\n/g, " ");
  const compare = state.models.length > 1;
  const head = ["text", ...(compare ? ["model"] : []), ...["logit", "probability", "share"].filter(shows)];
  const shareOf = new Map(state.models.map((model) => [model, sharesOf(state.rows, model)]));
  const body = sortedRows().flatMap(({ key, text, results }) =>
    state.models.filter((model) => results?.[model]).map((model) => [
      cell(text),
      ...(compare ? [cell(shortName(model))] : []),
      results[model].logit.toFixed(2),
      ...(shows("probability") ? [threeDigits(probabilityOf(results[model].logit, shareOf.get(model).get(key)))] : []),
      ...(shows("share") ? [threeDigits(shareOf.get(model).get(key))] : []),
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
  if (!state.rows.length || state.labels.length) return "";
  const parameters = new URLSearchParams(state.rows.map(({ text }) => ["text", text]));
  if (state.template !== "{}") parameters.set("template", state.template);
  return `#${parameters}`;
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
  if (location.hash === written || state.labels.length) return;
  const parameters = new URLSearchParams(location.hash.slice(1));
  const template = parameters.get("template");
  if (template?.includes("{}") && template !== state.template) setTemplate(template);
  const all = parameters.getAll("text").map((text) => text.trim()).filter(Boolean);
  const texts = all.filter((text) => !isTooLong(text));
  const maximum = state.limits.texts;
  addTexts(texts.slice(0, maximum));
  if (texts.length < all.length) notify(t("text_too_long", { maximum: state.limits.text_characters }));
  if (texts.length > maximum) notify(t("too_many_texts", { maximum, count: texts.length - maximum }));
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
