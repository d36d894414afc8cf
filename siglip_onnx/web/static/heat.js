// Heat map: every image of this tab with every text of the table.

import { classify } from "./api.js";
import { byId, make } from "./dom.js";
import { largest, shares, threeDigits } from "./format.js";
import { language, t } from "./i18n.js";
import { title } from "./images.js";
import { listen, state } from "./store.js";
import { MAX_SHOWN, probabilityOf, shortName, shows } from "./table.js";
import { notify } from "./toast.js";

const IMAGES_AT_ONCE = 16;
let results = null; // {images, texts, logits: {model: [[logit of text] of image]}}
let drawn = ""; // what the region shows

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
  drawn = "";
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
  const showing = JSON.stringify([language, choice.value]);
  if (results === null || drawn === showing) return;
  drawn = showing;
  const { images, texts } = results;
  const logits = results.logits[choice.value];
  const columns = chooseColumns(texts.length, logits);
  const head = make("tr", {}, make("td"), ...columns.map((column) => make("th", { scope: "col", textContent: texts[column] })));
  const body = images.map((image, number) => row(image, logits[number], columns));
  byId("heat-surplus").hidden = columns.length === texts.length;
  byId("heat-surplus").textContent = t("columns_shown", { maximum: columns.length, count: texts.length });
  const caption = make("caption", { className: "visually-hidden", textContent: t("heat_caption") });
  region.replaceChildren(make("table", {}, caption, make("thead", {}, head), make("tbody", {}, ...body)));
}

/** Return the numbers of the texts that are shown: of very many those that fit any image best. */
function chooseColumns(count, logits) {
  const columns = Array.from({ length: count }, (_, column) => column);
  if (columns.length <= MAX_SHOWN) return columns;
  const best = columns.map((column) => largest(logits.map((row) => row[column])));
  return columns.toSorted((a, b) => best[b] - best[a]).slice(0, MAX_SHOWN).toSorted((a, b) => a - b);
}

function row(image, logits, columns) {
  const best = largest(logits);
  const thumbnail = make("img", { src: image.url, alt: title(image.name) });
  const share = shares(logits);
  const cells = columns.map((column) => {
    const logit = logits[column];
    const probability = probabilityOf(logit, share[column]);
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
