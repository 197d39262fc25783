// Waveforms on a canvas, with a marked part.

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

/** Lowest and highest sample of each of `points` parts of an AudioBuffer's first channel. */
export function peaksOf(buffer, points) {
  const samples = buffer.getChannelData(0);
  const out = [];
  for (let i = 0; i < points; i++) {
    const stop = Math.max(Math.floor((i + 1) * samples.length / points), Math.floor(i * samples.length / points) + 1);
    let low = 0, high = 0;
    for (let at = Math.floor(i * samples.length / points); at < stop && at < samples.length; at++) {
      if (samples[at] < low) low = samples[at];
      if (samples[at] > high) high = samples[at];
    }
    out.push([low, high]);
  }
  return out;
}

/** Draw peaks over the whole canvas; the part from `start` to `end`, shares of the width, is marked. */
export function draw(canvas, peaks, start, end) {
  const ratio = window.devicePixelRatio || 1;
  const width = canvas.clientWidth, height = canvas.clientHeight;
  if (!width || !height) return;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const loudest = Math.max(0.02, ...peaks.map(([low, high]) => Math.max(-low, high)));
  const middle = height / 2, step = width / peaks.length;
  pen.fillStyle = colour("mark");
  pen.globalAlpha = 0.22;
  pen.fillRect(start * width, 0, Math.max(1, (end - start) * width), height);
  pen.globalAlpha = 1;
  peaks.forEach(([low, high], i) => {
    const inside = (i + 0.5) / peaks.length >= start && (i + 0.5) / peaks.length < end;
    pen.fillStyle = colour(inside ? "mark" : "quiet");
    const top = middle - high / loudest * middle * 0.95, bottom = middle - low / loudest * middle * 0.95;
    pen.fillRect(i * step, top, Math.max(step * 0.8, 0.5), Math.max(1, bottom - top));
  });
}

/** Let a part be chosen by dragging: `chosen(from, to)` gets shares of the width, in order. */
export function selectable(canvas, chosen) {
  let from = null;
  const share = (event) => {
    const box = canvas.getBoundingClientRect();
    return Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    from = share(event);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (from === null) return;
    const to = share(event);
    if (Math.abs(to - from) * canvas.clientWidth > 3) chosen(Math.min(from, to), Math.max(from, to));
  });
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { from = null; });
}
