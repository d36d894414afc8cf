// Every picture of this tab against every text of the table.

import { classify } from "./api.js";
import { byId, make } from "./dom.js";
import { sigmoid, threeDigits } from "./format.js";
import { t } from "./i18n.js";
import { title } from "./pictures.js";
import { listen, state } from "./store.js";
import { shortName } from "./table.js";
import { tell } from "./toast.js";

const PICTURES_AT_ONCE = 16;
let answers = null; // {pictures, texts, logits: {model: [[logit of text] of picture]}}

/** Ask, and show; only as many pictures and texts as one request may have. */
export async function runHeat() {
  const pictures = state.pictures.filter(({ id }) => id);
  const texts = state.rows.map(({ text }) => text).slice(0, state.limits.texts);
  const logits = Object.fromEntries(state.models.map((model) => [model, []]));
  try {
    for (let start = 0; start < pictures.length; start += PICTURES_AT_ONCE) {
      const reply = await classify(pictures.slice(start, start + PICTURES_AT_ONCE), texts, state.template);
      for (const { models } of reply.results) {
        for (const { model, matches } of models) logits[model].push(matches.map(({ logit }) => logit));
      }
    }
  } catch (error) {
    return tell(error.message);
  }
  answers = { pictures, texts, logits };
  draw();
}

function draw() {
  const region = byId("heat");
  region.hidden = answers === null;
  byId("heat-model-part").hidden = state.models.length < 2;
  const choice = byId("heat-model");
  if (choice.options.length !== state.models.length) {
    choice.replaceChildren(...state.models.map((model) => make("option", { value: model, textContent: shortName(model) })));
  }
  byId("heat-run").disabled = !state.rows.length || !state.pictures.some(({ id }) => id);
  if (answers === null) return;
  const { pictures, texts, logits } = answers;
  const head = make("tr", {}, make("td"), ...texts.map((text) => make("th", { scope: "col", textContent: text })));
  const body = pictures.map((picture, number) => row(picture, logits[choice.value][number]));
  const caption = make("caption", { className: "visually-hidden", textContent: t("heat_caption") });
  region.replaceChildren(make("table", {}, caption, make("thead", {}, head), make("tbody", {}, ...body)));
}

function row(picture, logits) {
  const best = Math.max(...logits);
  const image = make("img", { src: picture.url, alt: title(picture.name) });
  const cells = logits.map((logit) => {
    const cell = make("td", { textContent: threeDigits(sigmoid(logit)), className: logit === best ? "best" : "" });
    cell.style.setProperty("--p", sigmoid(logit)[0]);
    return cell;
  });
  return make("tr", {}, make("th", { scope: "row" }, image), ...cells);
}

export function startHeat() {
  byId("heat-run").onclick = runHeat;
  byId("heat-model").onchange = draw;
  listen(draw);
}
