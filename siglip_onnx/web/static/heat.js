// Heat map: every image of this tab with every text of the table.

import { classify } from "./api.js";
import { byId, make } from "./dom.js";
import { sigmoid, threeDigits } from "./format.js";
import { t } from "./i18n.js";
import { title } from "./images.js";
import { listen, state } from "./store.js";
import { shortName } from "./table.js";
import { notify } from "./toast.js";

const IMAGES_AT_ONCE = 16;
let results = null; // {images, texts, logits: {model: [[logit of text] of image]}}

/** Compute and show the heat map, with at most as many texts as one request may have. */
export async function runHeat() {
  const images = state.images.filter(({ id }) => id);
  const texts = state.rows.map(({ text }) => text).slice(0, state.limits.texts);
  const logits = Object.fromEntries(state.models.map((model) => [model, []]));
  try {
    for (let start = 0; start < images.length; start += IMAGES_AT_ONCE) {
      const reply = await classify(images.slice(start, start + IMAGES_AT_ONCE), texts, state.template);
      for (const { models } of reply.results) {
        for (const { model, matches } of models) logits[model].push(matches.map(({ logit }) => logit));
      }
    }
  } catch (error) {
    return notify(error.message);
  }
  results = { images, texts, logits };
  draw();
}

function draw() {
  const region = byId("heat");
  region.hidden = results === null;
  byId("heat-model-part").hidden = state.models.length < 2;
  const choice = byId("heat-model");
  if (choice.options.length !== state.models.length) {
    choice.replaceChildren(...state.models.map((model) => make("option", { value: model, textContent: shortName(model) })));
  }
  byId("heat-run").disabled = !state.rows.length || !state.images.some(({ id }) => id);
  if (results === null) return;
  const { images, texts, logits } = results;
  const head = make("tr", {}, make("td"), ...texts.map((text) => make("th", { scope: "col", textContent: text })));
  const body = images.map((image, number) => row(image, logits[choice.value][number]));
  const caption = make("caption", { className: "visually-hidden", textContent: t("heat_caption") });
  region.replaceChildren(make("table", {}, caption, make("thead", {}, head), make("tbody", {}, ...body)));
}

function row(image, logits) {
  const best = Math.max(...logits);
  const thumbnail = make("img", { src: image.url, alt: title(image.name) });
  const cells = logits.map((logit) => {
    const cell = make("td", { textContent: threeDigits(sigmoid(logit)), className: logit === best ? "best" : "" });
    cell.style.setProperty("--p", sigmoid(logit)[0]);
    return cell;
  });
  return make("tr", {}, make("th", { scope: "row" }, thumbnail), ...cells);
}

export function startHeat() {
  byId("heat-run").onclick = runHeat;
  byId("heat-model").onchange = draw;
  listen(draw);
}
