// English and Japanese: chosen by the browser, switchable, remembered.

import { byId } from "./dom.js";

const LANGUAGES = ["en", "ja"];
let words = {};
export let language = "en";

/** Return the sentence of a key, its {places} filled. */
export function t(key, values = {}) {
  return (words[key] ?? key).replace(/\{(\w+)\}/g, (place, name) => values[name] ?? place);
}

export const known = (key) => key in words;

export function preferred() {
  const chosen = localStorage.getItem("language");
  const wanted = [chosen, ...navigator.languages].filter(Boolean).map((tag) => tag.slice(0, 2));
  return wanted.find((tag) => LANGUAGES.includes(tag)) ?? "en";
}

/** Load a language and write every sentence of the page in it. */
export async function speak(tag) {
  words = await (await fetch(`static/i18n/${tag}.json`)).json();
  language = tag;
  document.documentElement.lang = tag;
  for (const element of document.querySelectorAll("[data-i18n]")) element.textContent = t(element.dataset.i18n);
  for (const element of document.querySelectorAll("[data-i18n-label]")) {
    element.setAttribute("aria-label", t(element.dataset.i18nLabel));
  }
  const other = LANGUAGES.find((one) => one !== tag);
  const button = byId("language");
  button.textContent = t("other_language");
  button.lang = other;
  button.onclick = () => {
    localStorage.setItem("language", other);
    document.dispatchEvent(new CustomEvent("speak", { detail: other }));
  };
}
