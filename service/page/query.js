// What is looked for: a clip that was recorded or chosen, or a stretch of a recording, and the part of it that counts.

import * as api from "./api.js";
import { at, clock, player, tell, trying } from "./shared.js";
import { Recorder } from "./sound.js";
import { draw, peaksOf, selectable } from "./wave.js";

const SHORTEST_S = 0.05;   // of a part that can be chosen
const DRAWN_S = 600;       // of a recording at a time
const POINTS = 800;

const recorder = new Recorder();

/** {name, duration, peaks, blob}, or {name, duration, peaks, recording, offset}; seconds count from the offset. */
let query = null;
let part = { start: 0, end: 0 };

export async function takeBlob(blob, name) {
  const context = new OfflineAudioContext(1, 1, 16000);
  let peaks = [], duration = null;
  try {
    const buffer = await context.decodeAudioData(await blob.arrayBuffer());
    peaks = peaksOf(buffer, POINTS);
    duration = buffer.duration;
  } catch { /* the browser cannot read it; the service may */ }
  take({ name, duration, peaks, blob });
  if (duration === null) tell("The browser cannot draw this file; it can be searched for as a whole.");
}

/** Show the ten minutes of a recording in which `start` lies, with a part chosen. */
export async function takeRecording(recording, start = 0, end = null) {
  const offset = Math.floor(start / DRAWN_S) * DRAWN_S;
  const duration = Math.min(recording.duration - offset, DRAWN_S);
  const peaks = await api.peaks(recording.id, offset, offset + duration, POINTS);
  take({ name: recording.name, duration, peaks, recording, offset });
  choose(start - offset, (end ?? start + 1) - offset);
  tell("Choose the part of the recording that is to be looked for.");
}

function take(taken) {
  player.stop();
  query = taken;
  at("clip").hidden = false;
  at("clip-name").textContent = taken.name;
  const whole = taken.recording;
  const long = whole !== undefined && whole.duration > DRAWN_S;
  const shown = long ? `${clock(taken.offset)} to ${clock(taken.offset + taken.duration)} of ${clock(whole.duration)}` : null;
  at("clip-duration").textContent = shown ?? (taken.duration === null ? "" : clock(taken.duration));
  at("clip-wave").hidden = taken.duration === null;
  at("pages").hidden = !long;
  at("earlier").disabled = !long || taken.offset === 0;
  at("later").disabled = !long || taken.offset + taken.duration >= whole.duration;
  for (const id of ["clip-start", "clip-end", "whole"]) at(id).disabled = taken.duration === null;
  choose(0, taken.duration ?? 0);
  for (const id of ["search", "watch"]) at(id).disabled = false;
}

function choose(start, end) {
  const duration = query.duration ?? 0;
  start = Math.min(Math.max(0, start), Math.max(0, duration - SHORTEST_S));
  end = Math.min(duration, Math.max(end, start + SHORTEST_S));
  part = { start, end };
  at("clip-start").value = start.toFixed(2);
  at("clip-end").value = end.toFixed(2);
  redraw();
}

export function redraw() {
  if (query?.duration) draw(at("clip-wave"), query.peaks, part.start / query.duration, part.end / query.duration);
}

/** The fields of a form that say what is looked for. */
export function examples() {
  if (query.recording !== undefined) {
    return { recording: query.recording.id, start: query.offset + part.start, end: query.offset + part.end };
  }
  if (query.duration !== null && (part.start > 0.005 || part.end < query.duration - 0.005)) {
    return { file: query.blob, start: part.start, end: part.end };
  }
  return { file: query.blob };
}

// ---- recordings to choose from

let nextOffset = 0;

export async function listRecordings(more) {
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

// ---- wiring

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
for (const [id, step] of [["earlier", -DRAWN_S], ["later", DRAWN_S]]) {
  at(id).addEventListener("click", trying(() => takeRecording(query.recording, query.offset + step)));
}

selectable(at("clip-wave"), (from, to) => choose(from * query.duration, to * query.duration));
for (const id of ["clip-start", "clip-end"]) {
  at(id).addEventListener("change", () => choose(Number(at("clip-start").value), Number(at("clip-end").value)));
}
at("whole").addEventListener("click", () => choose(0, query.duration));
at("play-clip").addEventListener("click", trying(async () => {
  const button = at("play-clip");
  const { recording, blob, duration, offset } = query, { start, end } = part;
  if (recording !== undefined) await player.play(() => api.clip(recording.id, offset + start, offset + end), button);
  else await player.play(() => blob, button, start, duration === null ? null : end);
}));
