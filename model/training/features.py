"""The teacher's features of packed recordings: windows of 30 s filled with several, stored frame by frame."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from model.audio import SAMPLE_RATE
from model.encoder import FRAME_SAMPLES
from model.training.data import Pack, write_atomically
from model.training.precision import autocast
from model.training.teacher import WIDTH, WINDOW_FRAMES, WINDOW_S, Teacher

GAP_FRAMES = 10  # 0.4 s of silence between two recordings of a window
OVERLAP_FRAMES = 50  # 2 s, between the windows of one recording that is longer than a window
FEATURES_FILE, JOURNAL_FILE, WHITENING_FILE = "teacher.f16", "teacher.json", "whitening.npz"
BATCH = 4


@dataclass(frozen=True)
class Placement:
    """A stretch of a recording inside a window, all in frames; only [keep, keep + frames) of it is stored."""

    window: int
    at: int
    recording: int
    first: int
    frames: int


def place(frames: npt.NDArray[np.int64], order: npt.NDArray[np.int64]) -> list[Placement]:
    """Pack recordings into windows, in `order`; one longer than a window is cut into overlapping stretches."""
    placements: list[Placement] = []
    window, at = 0, 0
    for recording in order:
        first, left = 0, int(frames[recording])
        while left > 0:
            size = min(left, WINDOW_FRAMES)
            if at + size > WINDOW_FRAMES and at > 0:
                window, at = window + 1, 0
            placements.append(Placement(window, at, int(recording), first, size))
            at += size + GAP_FRAMES
            if left == size:
                break
            first += size - OVERLAP_FRAMES
            left -= size - OVERLAP_FRAMES
    return placements


def window(pack: Pack, stretches: list[Placement]) -> npt.NDArray[np.float32]:
    """The sound of a window, float32 [480000], with these stretches in it."""
    out = np.zeros(WINDOW_S * SAMPLE_RATE, np.float32)
    for p in stretches:
        source = pack.waveform(p.recording)[p.first * FRAME_SAMPLES : (p.first + p.frames) * FRAME_SAMPLES]
        out[p.at * FRAME_SAMPLES : p.at * FRAME_SAMPLES + len(source)] = source / 32767.0
    return out


def store_features(
    load: Callable[[], Teacher], pack: Pack, work: Path, device: torch.device, *, seed: int = 0
) -> npt.NDArray[np.float16]:
    """Pooled features of every frame of a pack, float16 [frames, 512], in `work`; resumes where it stopped."""
    placements = place(pack.frames, np.random.default_rng(seed).permutation(len(pack.entries)))
    windows = placements[-1].window + 1
    of_window: list[list[Placement]] = [[] for _ in range(windows)]
    for placement in placements:
        of_window[placement.window].append(placement)
    journal = work / JOURNAL_FILE
    done = json.loads(journal.read_text(encoding="utf-8"))["windows"] if journal.exists() else 0
    mode: Literal["r+", "w+"] = "r+" if done else "w+"
    stored = np.memmap(work / FEATURES_FILE, np.float16, mode, shape=(int(pack.frames.sum()), WIDTH))
    if done >= windows:
        return stored
    teacher = load().to(device)  # not before it is needed: a resumed run may have no teacher at hand
    for first in tqdm(
        range(done, windows, BATCH), "teacher", math.ceil(windows / BATCH), initial=done // BATCH, unit="batch"
    ):
        batch = of_window[first : first + BATCH]
        waveform = np.stack([window(pack, stretches) for stretches in batch])
        with torch.inference_mode(), autocast(device):
            pooled = teacher(torch.from_numpy(waveform).to(device)).half().cpu().numpy()
        for row, stretches in enumerate(batch):
            for p in stretches:
                skip = OVERLAP_FRAMES // 2 if p.first else 0  # each stretch keeps the inner half of an overlap
                to = int(pack.start[p.recording]) + p.first
                stored[to + skip : to + p.frames] = pooled[row, p.at + skip : p.at + p.frames]
        if first // BATCH % 50 == 49 or first + BATCH >= windows:
            stored.flush()
            write_atomically(journal, json.dumps({"windows": min(first + BATCH, windows)}))
    return stored


@dataclass(frozen=True)
class Whitening:
    """x -> (x - mean) @ matrix: float32 mean [512], matrix [512, dim]."""

    mean: npt.NDArray[np.float32]
    matrix: npt.NDArray[np.float32]


def fit_whitening(features: npt.NDArray[np.float16], dim: int, sample: int = 200_000, seed: int = 0) -> Whitening:
    """PCA whitening of a sample of frames to `dim`; small eigenvalues are lifted by a thousandth of the largest."""
    at = np.sort(np.random.default_rng(seed).choice(len(features), min(sample, len(features)), replace=False))
    x = features[at].astype(np.float64)
    mean = x.mean(0)
    values, vectors = np.linalg.eigh(np.cov(x - mean, rowvar=False))
    order = np.argsort(values)[::-1][:dim]
    scale = 1.0 / np.sqrt(values[order] + 1e-3 * values.max())
    return Whitening(mean.astype(np.float32), (vectors[:, order] * scale).astype(np.float32))


def turned(
    whitening: Whitening, towards: Whitening, features: npt.NDArray[np.float16], sample: int = 50_000
) -> Whitening:
    """The same whitening, turned so that what it makes of features lies as near as can be to what another makes.

    White features stay white when they are turned (orthogonal Procrustes, Schönemann 1966). What was trained towards
    the other can so go on from where it is.
    """
    at = np.sort(np.random.default_rng(0).choice(len(features), min(sample, len(features)), replace=False))
    x = features[at].astype(np.float32)
    mine, its = ((x - w.mean) @ w.matrix for w in (whitening, towards))
    left, _, right = np.linalg.svd(mine.T.astype(np.float64) @ its)
    return Whitening(whitening.mean, np.asarray(whitening.matrix @ (left @ right), np.float32))


def save_whitening(whitening: Whitening, work: Path) -> None:
    """Beside the features."""
    partial = work / ("partial-" + WHITENING_FILE)
    np.savez(partial, mean=whitening.mean, matrix=whitening.matrix)
    partial.replace(work / WHITENING_FILE)


def load_whitening(work: Path) -> Whitening:
    """As `save_whitening` left it."""
    arrays = np.load(work / WHITENING_FILE)
    return Whitening(arrays["mean"], arrays["matrix"])
