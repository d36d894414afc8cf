// One message at a time, read aloud by screen readers, perhaps with something to do about it.

import { byId, make } from "./dom.js";

const SHOWN_MS = 12000;
let timer;

/** Show a message; actions are [label, function]. */
export function tell(message, ...actions) {
  const toast = byId("toast");
  const buttons = actions.map(([label, act]) => {
    const onclick = () => {
      byId("text").focus();
      hide();
      act();
    };
    return make("button", { type: "button", textContent: label, onclick });
  });
  toast.querySelector("span").textContent = message;
  toast.querySelector(".buttons").replaceChildren(...buttons);
  toast.classList.add("shown");
  clearTimeout(timer);
  timer = setTimeout(hideUnlessUsed, SHOWN_MS);
}

function hideUnlessUsed() {
  if (byId("toast").contains(document.activeElement)) timer = setTimeout(hideUnlessUsed, SHOWN_MS);
  else hide();
}

function hide() {
  clearTimeout(timer);
  const toast = byId("toast");
  toast.classList.remove("shown");
  toast.querySelector("span").textContent = "";
  toast.querySelector(".buttons").replaceChildren();
}
