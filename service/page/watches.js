// Watches: what stored queries have found, and what their webhooks were told.

import * as api from "./api.js";
import { forget, item } from "./hits.js";
import { at, copied, sure, tell, trying } from "./shared.js";

const HITS = 50;

export async function show() {
  const watches = await api.watches();
  forget(at("watch-list"));
  at("watch-list").replaceChildren(...watches.map(row));
  at("no-watches").hidden = watches.length > 0;
}

function row(watch) {
  const [out, find] = copied("watch-row");
  find("name").textContent = watch.name;
  find("facts").textContent = `in ${watch.archive}, score from ${watch.min_score}, ${watch.hits} ${watch.hits === 1 ? "hit" : "hits"}`;
  find("webhook").textContent = watch.webhook ?? "";
  find("list").setAttribute("aria-label", `What ${watch.name} has found`);
  find("list").addEventListener("click", trying(async () => {
    const list = find("found");
    list.hidden = !list.hidden;
    find("list").setAttribute("aria-expanded", String(!list.hidden));
    if (!list.hidden) await showHits(watch, list, find);
  }));
  find("delete").setAttribute("aria-label", `Delete the watch ${watch.name}`);
  find("delete").addEventListener("click", trying(async () => {
    if (!await sure(`Delete the watch “${watch.name}” with what it has found?`, "Delete")) return;
    await api.deleteWatch(watch.id);
    await show();
    tell(`Deleted ${watch.name}.`);
  }));
  return out;
}

async function showHits(watch, list, find) {
  const { hits } = await api.watchHits(watch.id, HITS);
  list.replaceChildren(...hits.map((hit, i) => {
    const [out, part] = item(hit, i + 1);
    for (const name of ["right", "wrong", "again"]) part(name).remove();
    return out;
  }));
  if (!hits.length) list.append(Object.assign(document.createElement("li"), { textContent: "Nothing yet." }));
  if (watch.webhook === null) return;
  const [latest] = await api.deliveries(watch.id);
  if (latest) find("told").textContent = latest.state === "delivered" ? "the webhook knows" : `webhook: ${latest.problem ?? "waiting"}`;
}
