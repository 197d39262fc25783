// The page: its views, the key, and what is drawn anew when the window changes.

import { useKey } from "./api.js";
import * as archives from "./archives.js";
import { redraw as redrawHits } from "./hits.js";
import { redraw as redrawClip } from "./query.js";
import { loadArchives } from "./search.js";
import { at, player, trying } from "./shared.js";
import * as watches from "./watches.js";

const VIEWS = { search: loadArchives, archives: archives.show, watches: watches.show };

/** Open the view that the address names. */
function open() {
  const wanted = location.hash.slice(1) in VIEWS ? location.hash.slice(1) : null;
  if (location.hash && wanted === null) return; // a place within the view that is open
  const name = wanted ?? "search";
  player.stop();
  for (const view of document.querySelectorAll(".view")) view.hidden = view.id !== `view-${name}`;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  redraw();
  return trying(() => VIEWS[name]())();
}

at("key-form").addEventListener("submit", trying(async (event) => {
  event.preventDefault();
  useKey(at("key").value.trim());
  const view = document.querySelector(".view:not([hidden])").id.replace("view-", "");
  await loadArchives();
  await VIEWS[view]();
  at("key-form").hidden = true;
  at("key").value = "";
}));

let resizing = 0;
function redraw() {
  cancelAnimationFrame(resizing);
  resizing = requestAnimationFrame(() => {
    redrawClip();
    redrawHits();
  });
}
window.addEventListener("resize", redraw);
window.addEventListener("hashchange", open);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

open();
