// Presets: the experiments of the package's examples.

import { getFile } from "./api.js";
import { byId, make } from "./dom.js";
import { runHeat } from "./heat.js";
import { language, t } from "./i18n.js";
import { addSamples } from "./images.js";
import { newRow, setRows, setTemplate, state } from "./store.js";

export async function startPresets(samples) {
  const presets = await (await getFile("static/presets.json")).json();
  for (const [name, { images, texts }] of Object.entries(presets)) {
    if (!images.every((image) => samples.includes(image))) continue;
    const button = make("button", { type: "button", "data-i18n": `preset_${name}`, textContent: t(`preset_${name}`) });
    button.onclick = async () => {
      button.disabled = true;
      await addSamples(images, { quietly: true });
      if (state.template !== "{}") setTemplate("{}");
      setRows(texts[language].map(newRow));
      if (images.length > 1) await runHeat();
      button.disabled = false;
      button.focus();
    };
    byId("presets").append(button);
  }
  if (!byId("presets").querySelector("button")) byId("presets").hidden = true;
}
