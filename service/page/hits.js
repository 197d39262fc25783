// A hit as it is shown: its waveform with the hit marked, played with a second of context.

import * as api from "./api.js";
import { clock, copied, player, trying } from "./shared.js";
import { draw } from "./wave.js";

const CONTEXT_S = 1;  // of sound around a hit
const POINTS = 300;

const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    seen.unobserve(entry.target);
    entry.target.load();
  }
});

/** What a hit is called, for whoever cannot see where its buttons stand. */
export const named = (hit, number) => `hit ${number}, ${hit.recording.name} at ${clock(hit.start)}`;

/** A list item for a hit, and a way to its parts; its waveform is fetched when it comes into sight. */
export function item(hit, number) {
  const [out, find] = copied("hit");
  const { recording, start, end, score } = hit;
  find("rank").textContent = `${number}.`;
  find("name").textContent = recording.name;
  find("time").textContent = `${clock(start)} to ${clock(end)}`;
  find("score").textContent = score.toFixed(3);
  find("meter").value = score;
  find("meter").title = `score ${score.toFixed(3)}`;
  const low = Math.max(0, start - CONTEXT_S), high = Math.min(recording.duration, end + CONTEXT_S);
  const canvas = find("wave");
  canvas.setAttribute("aria-label", `Waveform of hit ${number}, with a second of context`);
  let peaks = null;
  canvas.redraw = () => {
    if (peaks) draw(canvas, peaks, (start - low) / (high - low), (end - low) / (high - low));
  };
  canvas.load = async () => {
    try {
      peaks = await api.peaks(recording.id, low, high, POINTS);
      canvas.redraw();
    } catch (error) {
      canvas.replaceWith(Object.assign(document.createElement("p"), { className: "quiet", textContent: error.message }));
      find("play").disabled = true;
    }
  };
  seen.observe(canvas);
  find("play").setAttribute("aria-label", `Play ${named(hit, number)}`);
  find("play").addEventListener("click", trying(() => player.play(() => api.clip(recording.id, low, high), find("play"))));
  return [out, find];
}

/** Hits that are not shown any more need no waveforms. */
export function forget(list) {
  for (const canvas of list.querySelectorAll("canvas")) seen.unobserve(canvas);
}

export function redraw() {
  for (const canvas of document.querySelectorAll(".hit canvas")) canvas.redraw();
}
