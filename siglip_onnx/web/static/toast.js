// Notifications: one message at a time, announced by screen readers, with optional actions.

import { byId, make } from "./dom.js";

const SHOWN_MS = 12000;
let timer;

/** Show a message; actions are [label, function]. */
export function notify(message, ...actions) {
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
  timer = setTimeout(hideUnlessFocused, SHOWN_MS);
}

function hideUnlessFocused() {
  if (byId("toast").contains(document.activeElement)) timer = setTimeout(hideUnlessFocused, SHOWN_MS);
  else hide();
}

function hide() {
  clearTimeout(timer);
  const toast = byId("toast");
  toast.classList.remove("shown");
  toast.querySelector("span").textContent = "";
  toast.querySelector(".buttons").replaceChildren();
}
