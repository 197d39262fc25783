// What all views share: finding elements, telling what happens, and one player.

import { KeyNeeded } from "./api.js";
import { Player } from "./sound.js";

export const at = (id) => document.getElementById(id);
export const player = new Player(at("player"));

const view = () => document.querySelector(".view:not([hidden])");

/** Say in the view that is open what goes on. */
export function tell(text) {
  view().querySelector(".status").textContent = text;
}

/** Show an error in the view that is open, or none. */
export function complain(error) {
  const place = view().querySelector(".error");
  place.textContent = error ? error.message : "";
  place.hidden = !error;
  if (error) tell("");
}

/** Run an action; what goes wrong is shown. */
export function trying(action) {
  return async (...given) => {
    complain(null);
    try {
      await action(...given);
    } catch (error) {
      if (error instanceof KeyNeeded) at("key-form").hidden = false;
      if (error.name !== "AbortError") complain(error);
    }
  };
}

export function clock(seconds) {
  const minutes = Math.floor(seconds / 60), hours = Math.floor(minutes / 60);
  const rest = (seconds % 60).toFixed(2).padStart(5, "0");
  return hours ? `${hours}:${String(minutes % 60).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
}

/** A copy of a template, and a way to its parts by their classes. */
export function copied(id) {
  const element = at(id).content.firstElementChild.cloneNode(true);
  return [element, (name) => element.querySelector(`.${name}`)];
}

/** Ask before something that cannot be undone; resolves to whether it is wanted. */
export function sure(question, verb) {
  const dialog = at("sure");
  at("sure-question").textContent = question;
  at("sure-yes").textContent = verb;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((done) => dialog.addEventListener("close", () => done(dialog.returnValue === "yes"), { once: true }));
}
