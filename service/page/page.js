// The page: a query is chosen and trimmed, hits are shown, heard, marked and exported.

import * as api from "./api.js";
import { draw, peaksOf, selectable } from "./wave.js";
import { Player, Recorder } from "./sound.js";

const CONTEXT_S = 1;       // of sound around a hit
const SHORTEST_S = 0.05;   // of a part that can be chosen
const DRAWN_S = 600;       // of a recording, from its beginning
const CLIP_POINTS = 800, HIT_POINTS = 300;

const at = (id) => document.getElementById(id);
const player = new Player(at("player"));
const recorder = new Recorder();

/** What is asked about: {name, duration, peaks, blob} or {name, duration, peaks, recording}, and its chosen part. */
let query = null;
let part = { start: 0, end: 0 };
let hits = [];
const marks = new Map(); // "recording:start" -> {kind, hit}

// ---- telling

function tell(text) {
  at("status").textContent = text;
}

function complain(error) {
  at("error").textContent = error ? error.message : "";
  at("error").hidden = !error;
  if (error) tell("");
}

/** Run an action; what goes wrong is shown. */
function trying(action) {
  return async (...given) => {
    complain(null);
    try {
      await action(...given);
    } catch (error) {
      if (error instanceof api.KeyNeeded) at("key-form").hidden = false;
      if (error.name !== "AbortError") complain(error);
    }
  };
}

function clock(seconds) {
  const minutes = Math.floor(seconds / 60), hours = Math.floor(minutes / 60);
  const rest = (seconds % 60).toFixed(2).padStart(5, "0");
  return hours ? `${hours}:${String(minutes % 60).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
}

// ---- archives and their recordings

async function loadArchives() {
  const found = (await api.archives()).filter((archive) => archive.recordings > 0);
  const select = at("archive");
  select.replaceChildren(...found.map((archive) => {
    const option = new Option(archive.name, archive.name);
    option.dataset.facts = `${archive.recordings} recordings, ${archive.hours.toFixed(2)} h`;
    return option;
  }));
  const wanted = new URLSearchParams(location.search).get("archive");
  if (found.some((archive) => archive.name === wanted)) select.value = wanted;
  showFacts();
  if (!found.length) throw new Error("nothing has been indexed yet: sayagain index FOLDER --archive NAME");
}

function showFacts() {
  at("archive-facts").textContent = at("archive").selectedOptions[0]?.dataset.facts ?? "";
}

let nextOffset = 0;

async function listRecordings(more) {
  const page = await api.recordings(at("archive").value, at("contains").value, more ? nextOffset : 0);
  const items = page.recordings.map((recording) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = `${recording.name} (${clock(recording.duration)})`;
    button.addEventListener("click", trying(() => takeRecording(recording)));
    const item = document.createElement("li");
    item.append(button);
    return item;
  });
  if (more) at("recording-list").append(...items);
  else at("recording-list").replaceChildren(...items);
  nextOffset = page.next_offset;
  at("more-recordings").hidden = page.next_offset === null;
}

// ---- the query

async function takeBlob(blob, name) {
  const context = new OfflineAudioContext(1, 1, 16000);
  let peaks = [], duration = null;
  try {
    const buffer = await context.decodeAudioData(await blob.arrayBuffer());
    peaks = peaksOf(buffer, CLIP_POINTS);
    duration = buffer.duration;
  } catch { /* the browser cannot read it; the service may */ }
  take({ name, duration, peaks, blob });
  if (duration === null) tell("The browser cannot draw this file; it can be searched for as a whole.");
}

async function takeRecording(recording, start = 0, end = null) {
  const drawn = Math.min(recording.duration, DRAWN_S);
  const peaks = await api.peaks(recording.id, 0, drawn, CLIP_POINTS);
  take({ name: recording.name, duration: drawn, peaks, recording: recording.id });
  choose(start, end ?? Math.min(drawn, start + 1));
  tell("Choose the part of the recording that is to be looked for.");
}

function take(taken) {
  player.stop();
  query = taken;
  at("clip").hidden = false;
  at("clip-name").textContent = taken.name;
  at("clip-duration").textContent = taken.duration === null ? "" : clock(taken.duration);
  at("clip-wave").hidden = taken.duration === null;
  for (const id of ["clip-start", "clip-end", "whole"]) at(id).disabled = taken.duration === null;
  choose(0, taken.duration ?? 0);
  at("search").disabled = false;
}

function choose(start, end) {
  const duration = query.duration ?? 0;
  start = Math.min(Math.max(0, start), Math.max(0, duration - SHORTEST_S));
  end = Math.min(duration, Math.max(end, start + SHORTEST_S));
  part = { start, end };
  at("clip-start").value = start.toFixed(2);
  at("clip-end").value = end.toFixed(2);
  drawClip();
}

function drawClip() {
  if (query?.duration) draw(at("clip-wave"), query.peaks, part.start / query.duration, part.end / query.duration);
}

function form() {
  const out = {
    archive: at("archive").value,
    limit: at("limit").value,
    min_score: at("min-score").value || "0",
    rescore: at("deep").checked ? "deep" : "codes",
  };
  if (query.recording !== undefined) return { ...out, recording: query.recording, start: part.start, end: part.end };
  out.file = query.blob;
  if (query.duration !== null && (part.start > 0.005 || part.end < query.duration - 0.005)) {
    out.start = part.start;
    out.end = part.end;
  }
  return out;
}

async function run(refined) {
  const button = at("search");
  button.disabled = true;
  tell("Searching …");
  try {
    const judged = { right: [], wrong: [] };
    for (const { kind, hit } of marks.values()) {
      judged[kind].push({ recording: hit.recording.id, start: hit.start, end: hit.end });
    }
    const answer = await api.search(form(), refined ? judged : null);
    const kept = refined ? [...marks.values()].filter(({ kind }) => kind === "right").map(({ hit }) => key(hit)) : [];
    for (const name of [...marks.keys()]) if (!kept.includes(name)) marks.delete(name);
    hits = answer.hits;
    show();
    const { recordings, hours } = answer.searched;
    tell(`${hits.length} hits in ${recordings} recordings (${hours.toFixed(2)} h), ${Math.round(answer.timing_ms.total)} ms.`);
    at("results").focus({ preventScroll: hits.length === 0 });
  } finally {
    button.disabled = false;
  }
}

// ---- hits

const key = (hit) => `${hit.recording.id}:${hit.start}`;

const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    seen.unobserve(entry.target);
    entry.target.load();
  }
});

function shown() {
  const wanted = at("filter").value.toLowerCase();
  return hits.filter((hit) => hit.recording.name.toLowerCase().includes(wanted));
}

function show() {
  seen.disconnect();
  const some = shown();
  at("hits").replaceChildren(...some.map(item));
  at("tools").hidden = hits.length === 0;
  at("nothing").hidden = some.length > 0;
  at("nothing").textContent = hits.length ? "No hit is in such a recording." : "Nothing was found.";
  countMarks();
}

function item(hit) {
  const out = at("hit").content.firstElementChild.cloneNode(true);
  const find = (name) => out.querySelector(`.${name}`);
  const { recording, start, end, score } = hit;
  find("rank").textContent = `${hit.rank}.`;
  find("name").textContent = recording.name;
  find("time").textContent = `${clock(start)} to ${clock(end)}`;
  find("score").textContent = score.toFixed(3);
  find("meter").value = score;
  find("meter").title = `score ${score.toFixed(3)}`;
  const low = Math.max(0, start - CONTEXT_S), high = Math.min(recording.duration, end + CONTEXT_S);
  const canvas = find("wave");
  canvas.setAttribute("aria-label", `Waveform of hit ${hit.rank}, with a second of context`);
  let peaks = null;
  canvas.redraw = () => {
    if (peaks) draw(canvas, peaks, (start - low) / (high - low), (end - low) / (high - low));
  };
  canvas.load = async () => {
    try {
      peaks = await api.peaks(recording.id, low, high, HIT_POINTS);
      canvas.redraw();
    } catch (error) {
      canvas.replaceWith(Object.assign(document.createElement("p"), { className: "quiet", textContent: error.message }));
      find("play").disabled = true;
    }
  };
  seen.observe(canvas);
  const what = `hit ${hit.rank}, ${recording.name} at ${clock(start)}`;
  find("play").setAttribute("aria-label", `Play ${what}`);
  find("play").addEventListener("click", trying(() => player.play(() => api.clip(recording.id, low, high), find("play"))));
  for (const kind of ["right", "wrong"]) {
    const button = find(kind);
    button.setAttribute("aria-label", `Mark as ${kind}: ${what}`);
    button.setAttribute("aria-pressed", String(marks.get(key(hit))?.kind === kind));
    button.addEventListener("click", () => mark(hit, kind, out));
  }
  find("again").setAttribute("aria-label", `Search for ${what}`);
  find("again").addEventListener("click", trying(async () => {
    await takeRecording(recording, start, end);
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

// ---- wiring

at("archive").addEventListener("change", trying(async () => {
  showFacts();
  hits = [];
  marks.clear();
  show();
  at("nothing").textContent = "Nothing has been searched for in this archive yet.";
  if (!at("recordings").hidden) await listRecordings(false);
}));

at("record").addEventListener("click", trying(async () => {
  if (recorder.on) {
    const blob = await recorder.stop();
    at("record").setAttribute("aria-pressed", "false");
    at("record-text").textContent = "Record";
    await takeBlob(blob, "Recording");
    tell("Recorded. Trim it if you like, then search.");
    return;
  }
  await recorder.start();
  at("record").setAttribute("aria-pressed", "true");
  at("record-text").textContent = "Stop";
  tell("Recording: say the word, then stop.");
}));

at("file").addEventListener("change", trying(async () => {
  const [file] = at("file").files;
  at("file").value = "";
  if (file) await takeBlob(file, file.name);
}));

for (const name of ["dragenter", "dragover"]) {
  at("drop").addEventListener(name, (event) => {
    event.preventDefault();
    at("drop").classList.add("over");
  });
}
at("drop").addEventListener("dragleave", () => at("drop").classList.remove("over"));
at("drop").addEventListener("drop", trying(async (event) => {
  event.preventDefault();
  at("drop").classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) await takeBlob(file, file.name);
}));

at("browse").addEventListener("click", trying(async () => {
  const open = at("recordings").hidden;
  at("recordings").hidden = !open;
  at("browse").setAttribute("aria-expanded", String(open));
  if (open) await listRecordings(false);
}));
let typing = 0;
at("contains").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(trying(() => listRecordings(false)), 200);
});
at("more-recordings").addEventListener("click", trying(() => listRecordings(true)));

selectable(at("clip-wave"), (from, to) => choose(from * query.duration, to * query.duration));
for (const id of ["clip-start", "clip-end"]) {
  at(id).addEventListener("change", () => choose(Number(at("clip-start").value), Number(at("clip-end").value)));
}
at("whole").addEventListener("click", () => choose(0, query.duration));
at("play-clip").addEventListener("click", trying(async () => {
  const button = at("play-clip");
  const { recording, blob, duration } = query, { start, end } = part;
  if (recording !== undefined) await player.play(() => api.clip(recording, start, end), button);
  else await player.play(() => blob, button, start, duration === null ? null : end);
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

at("key-form").addEventListener("submit", trying(async (event) => {
  event.preventDefault();
  api.useKey(at("key").value.trim());
  await loadArchives();
  at("key-form").hidden = true;
  at("key").value = "";
}));

let resizing = 0;
function redraw() {
  cancelAnimationFrame(resizing);
  resizing = requestAnimationFrame(() => {
    drawClip();
    for (const canvas of document.querySelectorAll(".hit canvas")) canvas.redraw();
  });
}
window.addEventListener("resize", redraw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

trying(loadArchives)();
