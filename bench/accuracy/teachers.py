"""The teacher, published or tuned, as an embedder of many waveforms; and which of its layers hears words best.

    python -m bench.accuracy.teachers --speech SPEECH --tasks TASKS --teacher WEIGHTS [--task english] [--json]

prints MAP by DTW on the published encoder's own features: after block 4, 5 and 6, whitened to 64, 128 and 256
dimensions, from one packing of the recordings into windows and as the mean of two (its positions are absolute, so
that each packing hears a recording elsewhere). Whitening is fitted to the archive that is searched.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from bench.accuracy import probes
from bench.accuracy.archive import Recordings, read_queries, read_recordings
from bench.accuracy.embedders import Embed
from bench.accuracy.matchers import ask, matcher
from model.audio import Samples
from model.codebook import Float32
from model.encoder import FRAME_SAMPLES, FRAME_SECONDS
from model.training import features, targets, teacher
from model.training.data import Entry, Pack
from model.training.lowrank import load_tuned
from model.training.precision import autocast
from service.evaluation.tasks import read_task

CPU = torch.device("cpu")
LAYERS, DIMS, PACKINGS = (4, 5, 6), (64, 128, 256), 2


def packed(waveforms: list[Samples]) -> Pack:
    """Waveforms as a pack in memory, each cut to whole frames."""
    frames = np.array([len(w) // FRAME_SAMPLES for w in waveforms], np.int64)
    parts = [
        np.round(w[: n * FRAME_SAMPLES] * 32767.0).astype(np.int16) for w, n in zip(waveforms, frames, strict=True)
    ]
    start = np.concatenate([[0], np.cumsum(frames)[:-1]])
    return Pack(np.concatenate(parts), start, frames, [Entry("", "", "", "speech")] * len(parts))


def embedder(weights: str, whitening: features.Whitening, tuned: Path | None, work: Path) -> Embed:
    """The tuned teacher, which hears each waveform alone; without `tuned` the whitened last layer of the published one,
    which hears them packed into windows of 30 s."""  # fmt: skip
    load: Callable[[], teacher.Teacher] = lambda: teacher.load_teacher(weights)  # noqa: E731
    calls = 0

    def embed(waveforms: list[Samples]) -> list[Float32]:
        nonlocal calls
        pack = packed(waveforms)
        folder = work / f"{'published' if tuned is None else 'tuned'}-{calls}"
        folder.mkdir(parents=True)
        calls += 1
        if tuned is None:
            stored = features.store_features(load, pack, folder, CPU)
            made = targets.whitened(stored, whitening, folder / targets.TARGETS_FILE)
        else:
            made = targets.tuned(pack, load_tuned(load(), tuned), folder / targets.TARGETS_FILE, CPU)
        return [made[a : a + n].astype(np.float32) for a, n in zip(pack.start, pack.frames, strict=True)]

    return embed


def layers_of(model: teacher.Teacher, waveforms: list[Samples], seed: int) -> list[Float32]:
    """Features after each of `LAYERS`, side by side: float32 [frames, 3, 512] of each waveform, packed by `seed`."""
    pack = packed(waveforms)
    placements = features.place(pack.frames, np.random.default_rng(seed).permutation(len(waveforms)))
    out = np.zeros((int(pack.frames.sum()), len(LAYERS), teacher.WIDTH), np.float32)
    windows = [[p for p in placements if p.window == w] for w in range(placements[-1].window + 1)]
    for stretches in tqdm(windows, "teacher", unit="window"):
        with torch.inference_mode(), autocast(CPU):
            mel = model.log_mel(torch.from_numpy(features.window(pack, stretches))[None])
            x = model.stem(mel, 2 * teacher.WINDOW_FRAMES)
            after = [x := block(x) for block in model.blocks][min(LAYERS) - 1 :]
            after[-1] = model.ln_post(after[-1].float())
            heard = torch.stack([y.float().view(-1, 2, teacher.WIDTH).mean(1) for y in after], 1).numpy()
        for p in stretches:
            skip = features.OVERLAP_FRAMES // 2 if p.first else 0
            to = int(pack.start[p.recording]) + p.first
            out[to + skip : to + p.frames] = heard[p.at + skip : p.at + p.frames]
    return [out[a : a + n] for a, n in zip(pack.start, pack.frames, strict=True)]


def compare(task: Path, folder: Path, weights: str) -> list[dict[str, object]]:
    """One row for each layer, number of dimensions and number of packings."""
    model = teacher.load_teacher(weights)
    kept: list[list[list[Float32]]] = []  # by call (the archive, the clips), packing and waveform

    def embed(waveforms: list[Samples]) -> list[Float32]:
        kept.append([layers_of(model, waveforms, seed) for seed in range(PACKINGS)])
        return [np.zeros((len(part), 256), np.float32) for part in kept[-1][0]]

    queries = read_task(task)
    recordings = read_recordings(folder, embed, FRAME_SECONDS)
    read_queries(queries, "isolated", embed, task.parent, recordings, None)  # what it is given is kept
    rows: list[dict[str, object]] = []
    for number, layer in enumerate(LAYERS):
        everything = np.concatenate([part[:, number] for part in kept[0][0]])
        for dim in DIMS:
            whitening = features.fit_whitening(everything.astype(np.float16), dim)

            def unit(x: Float32, by: features.Whitening = whitening) -> Float32:
                y = torch.from_numpy((x - by.mean) @ by.matrix)
                return np.asarray(F.normalize(y, dim=-1).numpy(), np.float32)

            for packings in range(1, PACKINGS + 1):

                def mean(call: int, n: int, count: int = packings, at: int = number) -> Float32:
                    total = np.sum([unit(kept[call][k][n][:, at]) for k in range(count)], axis=0)
                    return np.asarray(total / np.linalg.norm(total, axis=1, keepdims=True), np.float32)

                heard = Recordings(
                    recordings.names, recordings.sounds,
                    np.concatenate([mean(0, n) for n in range(len(recordings.names))]), recordings.offsets,
                    FRAME_SECONDS,
                )  # fmt: skip
                given = iter([mean(1, n) for n in range(len(queries))])
                isolated = read_queries(queries, "isolated", lambda _: list(given), task.parent, heard, None)  # noqa: B023
                row: dict[str, object] = {"task": task.stem, "block": layer, "dims": dim, "packings": packings}
                for condition in ("isolated", "in_sentence"):
                    asked = isolated
                    if condition == "in_sentence":
                        if any(place.start_s is None for q in queries for place in (q.source, *q.relevant)):
                            continue
                        asked = read_queries(queries, condition, embed, task.parent, heard, None)
                    answers = ask(matcher("continuous", heard, None), asked, heard)
                    row[condition] = round(probes.mean_average_precision(queries, answers, heard), 4)
                rows.append(row)
    return rows


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--teacher", required=True, help="the teacher's weights")
    parser.add_argument("--task", nargs="+", default=["english"])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if not arguments.json:
        print("| task | after block | dims | packings | isolated | in its sentence |\n|---|---|---|---|---|---|")
    for task in arguments.task:
        for row in compare(arguments.tasks / f"{task}.json", arguments.speech / "dev" / task, arguments.teacher):
            if arguments.json:
                print(json.dumps(row))
            else:
                cells = [row.get(k, "-") for k in ("task", "block", "dims", "packings", "isolated", "in_sentence")]
                print("| " + " | ".join(str(c) for c in cells) + " |")


if __name__ == "__main__":
    main()
