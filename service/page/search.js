// The search: it is asked, its hits are marked, refined, filtered and exported.

import * as api from "./api.js";
import { forget, item, named } from "./hits.js";
import { examples, listRecordings, takeBlob, takeRecording } from "./query.js";
import { at, tell, trying } from "./shared.js";

let hits = [];
const marks = new Map(); // "recording:start" -> {kind, hit}

const key = (hit) => `${hit.recording.id}:${hit.start}`;

function form() {
  return {
    archive: at("archive").value,
    limit: at("limit").value,
    min_score: at("min-score").value || "0",
    ...examples(),
  };
}

function judged() {
  const out = { right: [], wrong: [] };
  for (const { kind, hit } of marks.values()) {
    out[kind].push({ recording: hit.recording.id, start: hit.start, end: hit.end });
  }
  return out;
}

async function run(refined) {
  const button = at("search");
  button.disabled = true;
  tell("Searching …");
  try {
    const asked = form(), marked = refined ? judged() : null;
    let answer = await api.search(asked, marked);
    if (at("deep").checked) { // what is there already is shown meanwhile
      place(answer, refined);
      tell(`${answer.hits.length} first hits; their sound is heard again …`);
      answer = await api.search({ ...asked, rescore: "deep" }, marked);
    }
    place(answer, refined);
    const { recordings, hours } = answer.searched;
    tell(`${hits.length} hits in ${recordings} recordings (${hours.toFixed(2)} h), ${Math.round(answer.timing_ms.total)} ms.`);
    at("results").focus({ preventScroll: hits.length === 0 });
  } finally {
    button.disabled = false;
  }
}

function place(answer, refined) {
  const kept = refined ? [...marks.values()].filter(({ kind }) => kind === "right").map(({ hit }) => key(hit)) : [];
  for (const name of [...marks.keys()]) if (!kept.includes(name)) marks.delete(name);
  hits = answer.hits;
  show();
}

function shown() {
  const wanted = at("filter").value.toLowerCase();
  return hits.filter((hit) => hit.recording.name.toLowerCase().includes(wanted));
}

function show() {
  forget(at("hits"));
  const some = shown();
  at("hits").replaceChildren(...some.map(shownHit));
  at("tools").hidden = hits.length === 0;
  at("nothing").hidden = some.length > 0;
  at("nothing").textContent = hits.length ? "No hit is in such a recording." : "Nothing was found.";
  countMarks();
}

function shownHit(hit) {
  const [out, find] = item(hit, hit.rank);
  const what = named(hit, hit.rank);
  for (const kind of ["right", "wrong"]) {
    const button = find(kind);
    button.setAttribute("aria-label", `Mark as ${kind}: ${what}`);
    button.setAttribute("aria-pressed", String(marks.get(key(hit))?.kind === kind));
    button.addEventListener("click", () => mark(hit, kind, out));
  }
  find("again").setAttribute("aria-label", `Search for ${what}`);
  find("again").addEventListener("click", trying(async () => {
    await takeRecording(hit.recording, hit.start, hit.end);
    await run(false);
  }));
  return out;
}

function mark(hit, kind, element) {
  if (marks.get(key(hit))?.kind === kind) marks.delete(key(hit));
  else marks.set(key(hit), { kind, hit });
  for (const other of ["right", "wrong"]) {
    element.querySelector(`.${other}`).setAttribute("aria-pressed", String(marks.get(key(hit))?.kind === other));
  }
  countMarks();
}

function countMarks() {
  at("refine").disabled = marks.size === 0;
  at("refine").textContent = marks.size ? `Refine with your marks (${marks.size})` : "Refine with your marks";
}

// ---- archives to search in

export async function loadArchives(chosen = null) {
  const found = (await api.archives()).filter((archive) => archive.recordings > 0);
  const select = at("archive");
  const wanted = chosen ?? (select.value || new URLSearchParams(location.search).get("archive"));
  select.replaceChildren(...found.map((archive) => {
    const option = new Option(archive.name, archive.name);
    option.dataset.facts = `${archive.recordings} recordings, ${archive.hours.toFixed(2)} h`;
    return option;
  }));
  if (found.some((archive) => archive.name === wanted)) select.value = wanted;
  at("empty").hidden = found.length > 0;
  showFacts();
}

function showFacts() {
  at("archive-facts").textContent = at("archive").selectedOptions[0]?.dataset.facts ?? "";
}

// ---- wiring

at("archive").addEventListener("change", trying(async () => {
  showFacts();
  hits = [];
  marks.clear();
  show();
  at("nothing").textContent = "Nothing has been searched for in this archive yet.";
  if (!at("recordings").hidden) await listRecordings(false);
}));
at("ask").addEventListener("submit", trying(async (event) => {
  event.preventDefault();
  await run(false);
}));
at("refine").addEventListener("click", trying(() => run(true)));
at("filter").addEventListener("input", show);
at("export").addEventListener("click", trying(async () => {
  const { name, blob } = await api.exported(at("format").value, at("label").value || "hit", shown());
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}));
at("watch-form").addEventListener("submit", trying(async (event) => {
  event.preventDefault();
  const made = await api.watch({
    ...examples(),
    archive: at("archive").value,
    name: at("watch-name").value,
    min_score: at("watch-score").value,
    ...(at("watch-url").value ? { webhook: at("watch-url").value } : {}),
  });
  at("watch-name").value = at("watch-url").value = "";
  tell(`Watching for “${made.name}” in ${made.archive}: see Watches.`);
  at("watch-secret").hidden = made.secret === null;
  at("watch-secret-text").textContent = made.secret ?? "";
}));

/** Let files be dropped on an element. */
export function droppable(element, taken) {
  for (const name of ["dragenter", "dragover"]) {
    element.addEventListener(name, (event) => {
      event.preventDefault();
      element.classList.add("over");
    });
  }
  element.addEventListener("dragleave", () => element.classList.remove("over"));
  element.addEventListener("drop", trying(async (event) => {
    event.preventDefault();
    element.classList.remove("over");
    if (event.dataTransfer.files.length) await taken([...event.dataTransfer.files]);
  }));
}
droppable(at("drop"), ([file]) => takeBlob(file, file.name));
