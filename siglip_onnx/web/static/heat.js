// Heat map: every image of this tab with every text of the table.

import { classify } from "./api.js";
import { byId, make } from "./dom.js";
import { shares, threeDigits } from "./format.js";
import { t } from "./i18n.js";
import { title } from "./images.js";
import { listen, state } from "./store.js";
import { probabilityOf, shortName, shows } from "./table.js";
import { notify } from "./toast.js";

const IMAGES_AT_ONCE = 16;
let results = null; // {images, texts, logits: {model: [[logit of text] of image]}}

/** Compute and show the heat map, in requests of some images and at most as many texts as one may have. */
export async function runHeat() {
  const images = state.images.filter(({ id }) => id);
  const { labels, rows, limits } = state;
  const texts = labels.length ? labels : rows.map(({ text }) => text);
  const logits = Object.fromEntries(state.models.map((model) => [model, images.map(() => [])]));
  const size = labels.length || limits.texts;
  const count = Math.min(IMAGES_AT_ONCE, limits.images);
  try {
    for (let start = 0; start < images.length; start += count) {
      for (let first = 0; first < texts.length; first += size) {
        const some = labels.length ? null : texts.slice(first, first + size);
        const reply = await classify(images.slice(start, start + count), some, state.template);
        reply.results.forEach(({ models }, number) => {
          for (const { model, matches } of models) logits[model][start + number].push(...matches.map(({ logit }) => logit));
        });
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
  const share = shares(logits);
  const cells = logits.map((logit, number) => {
    const probability = probabilityOf(logit, share[number]);
    const cell = make("td", { textContent: threeDigits(probability), className: logit === best ? "best" : "" });
    cell.style.setProperty("--p", probability[0]);
    return cell;
  });
  return make("tr", {}, make("th", { scope: "row" }, thumbnail), ...cells);
}

export function startHeat() {
  byId("heat-part").hidden = !shows("probability");
  byId("heat-run").onclick = runHeat;
  byId("heat-model").onchange = draw;
  listen(draw);
}
