// Start the parts of the page.

import { getModels } from "./api.js";
import { startFilling } from "./fill.js";
import { startCamera } from "./camera.js";
import { byId } from "./dom.js";
import { startHeat } from "./heat.js";
import { preferredLanguage, setLanguage, t } from "./i18n.js";
import { startImages } from "./images.js";
import { startPresets } from "./presets.js";
import { load, save } from "./storage.js";
import { addTexts, canUndo, changed, isTooLong, listen, newRow, setRows, setTemplate, state, undo } from "./store.js";
import { setUndoAction, startTable } from "./table.js";
import { notify } from "./toast.js";
import { startTransfer } from "./transfer.js";
import { startWhere } from "./where.js";

const THEMES = ["auto", "light", "dark"];
const undoAction = () => [t("undo"), undo];

function startTexts() {
  const text = byId("text");
  byId("text-form").onsubmit = (event) => {
    event.preventDefault();
    const lines = text.value.split("\n").map((line) => line.trim()).filter(Boolean);
    if (lines.some(isTooLong)) return notify(t("text_too_long", { maximum: state.limits.text_characters }));
    const present = lines.length && addTexts(lines);
    if (present) notify(t("already_present", { count: present }));
    text.value = "";
    text.focus();
  };
  text.onkeydown = (event) => {
    // While an input method composes, Enter selects a word.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    byId("text-form").requestSubmit();
  };
}

function startTemplate() {
  const input = byId("template");
  const problem = byId("template-problem");
  input.onchange = () => {
    const template = input.value.trim() || "{}";
    problem.hidden = template.includes("{}");
    problem.textContent = problem.hidden ? "" : t("template_problem");
    if (problem.hidden && template !== state.template) setTemplate(template);
  };
  listen(() => {
    if (document.activeElement !== input) input.value = state.template;
    if (state.template !== "{}") byId("options").open = true;
  });
}

function startTools() {
  byId("undo").onclick = undo;
  byId("clear").onclick = () => {
    setRows([]);
    notify(t("cleared"), undoAction());
    byId("text").focus();
  };
  document.addEventListener("keydown", (event) => {
    const isTyping = event.target.matches("input, textarea") && event.target.value !== "";
    if (!(event.ctrlKey || event.metaKey) || event.shiftKey || event.key.toLowerCase() !== "z" || isTyping) return;
    event.preventDefault();
    undo();
  });
  listen(() => {
    byId("undo").disabled = !canUndo();
    byId("clear").disabled = state.rows.length === 0;
  });
}

function startTheme() {
  const button = byId("theme");
  const apply = () => {
    const theme = load("theme") ?? "auto";
    document.documentElement.dataset.theme = theme;
    button.textContent = t("theme", { theme: t(`theme_${theme}`) });
  };
  button.onclick = () => {
    const theme = document.documentElement.dataset.theme;
    save("theme", THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length]);
    apply();
  };
  listen(apply);
}

/** Show the labels of classifiers in place of texts, the most likely first. */
function startLabels({ labels, problem_type: problem }) {
  if (!labels.length) return;
  Object.assign(state, { labels, problem, sort: { by: "logit", down: true } });
  for (const id of ["text-form", "presets", "options", "undo", "clear", "link", "explainer"]) byId(id).hidden = true;
  for (const [id, key] of [["texts-heading", "labels"], ["waiting", "waiting_for_labels"]]) {
    byId(id).dataset.i18n = key;
    byId(id).textContent = t(key);
  }
  setRows(labels.map(newRow), { canBeUndone: false });
}

async function start() {
  await setLanguage(preferredLanguage());
  byId("failed").remove();
  document.documentElement.classList.remove("loading");
  const { models, limits, url_fetch: canFetch, samples } = await getModels();
  state.models = models.map(({ id }) => id);
  state.limits = limits;
  startLabels(models[0]);
  document.addEventListener("languagechoice", async (event) => {
    await setLanguage(event.detail);
    changed();
  });
  startTheme();
  startWhere();
  startTable();
  startImages(samples, undoAction);
  startCamera(undoAction);
  startTexts();
  startTemplate();
  startTools();
  startHeat();
  startTransfer();
  startFilling();
  setUndoAction(undoAction);
  byId("url-form").hidden = !canFetch;
  byId("url-off").hidden = canFetch;
  byId("models").textContent = models.map(({ name, variant }) => `${name} ${variant}`).join(", ");
  // Only the demo model's description exists in both languages.
  const described = models.find((model) => model.description);
  listen(() => {
    const description = described?.name === "demo" ? t("description_demo") : described?.description;
    byId("description").textContent = description ? t("description", { description }) : "";
  });
  byId("samples-part").hidden = !samples.length;
  await startPresets(samples);
  changed();
}

start().catch((error) => {
  if (document.documentElement.classList.contains("loading")) byId("failure").textContent = error.message;
  else notify(error.message);
});
