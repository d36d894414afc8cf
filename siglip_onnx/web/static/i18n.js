// English and Japanese: chosen by the browser's settings, switchable, remembered.

import { getFile } from "./api.js";
import { byId } from "./dom.js";
import { load, save } from "./storage.js";

const LANGUAGES = ["en", "ja"];
let texts = {};
export let language = "en";

/** Return the text of a key with its {placeholders} filled in. */
export function t(key, values = {}) {
  return (texts[key] ?? key).replace(/\{(\w+)\}/g, (placeholder, name) => values[name] ?? placeholder);
}

export const hasText = (key) => key in texts;

export function preferredLanguage() {
  const saved = load("language");
  const tags = [saved, ...navigator.languages].filter(Boolean).map((tag) => tag.slice(0, 2));
  return tags.find((tag) => LANGUAGES.includes(tag)) ?? "en";
}

/** Load a language and set every text of the page. */
export async function setLanguage(tag) {
  texts = await (await getFile(`static/i18n/${tag}.json`)).json();
  language = tag;
  document.documentElement.lang = tag;
  for (const element of document.querySelectorAll("[data-i18n]")) element.textContent = t(element.dataset.i18n);
  for (const element of document.querySelectorAll("[data-i18n-label]")) {
    element.setAttribute("aria-label", t(element.dataset.i18nLabel));
  }
  const other = LANGUAGES.find((candidate) => candidate !== tag);
  const button = byId("language");
  button.textContent = t("other_language");
  button.lang = other;
  button.onclick = () => {
    save("language", other);
    document.dispatchEvent(new CustomEvent("languagechoice", { detail: other }));
  };
}
