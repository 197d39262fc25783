"""The teacher, published or tuned, as an embedder of many waveforms: the upper reference of the ablation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from bench.accuracy.embedders import Embed
from model.audio import Samples
from model.codebook import Float32
from model.encoder import FRAME_SAMPLES
from model.training import features, targets, teacher
from model.training.data import Entry, Pack
from model.training.lowrank import load_tuned


def packed(waveforms: list[Samples]) -> Pack:
    """Waveforms as a pack in memory, each cut to whole frames."""
    frames = np.array([len(w) // FRAME_SAMPLES for w in waveforms], np.int64)
    parts = [
        np.round(w[: n * FRAME_SAMPLES] * 32767.0).astype(np.int16) for w, n in zip(waveforms, frames, strict=True)
    ]
    start = np.concatenate([[0], np.cumsum(frames)[:-1]])
    return Pack(np.concatenate(parts), start, frames, [Entry("", "", "", "speech")] * len(parts))


def embedder(weights: str, whitening: features.Whitening, tuned: Path | None, work: Path) -> Embed:
    """Packs what it is given into windows of 30 s; without `tuned` the whitened last layer of the published encoder."""
    load: Callable[[], teacher.Teacher] = lambda: teacher.load_teacher(weights)  # noqa: E731
    calls = 0

    def embed(waveforms: list[Samples]) -> list[Float32]:
        nonlocal calls
        pack = packed(waveforms)
        folder = work / f"{'published' if tuned is None else 'tuned'}-{calls}"
        folder.mkdir(parents=True)
        calls += 1
        stored = features.store_features(load, pack, folder, torch.device("cpu"), lower=tuned is not None)
        if tuned is None:
            made = targets.whitened(stored.pooled, whitening, folder / targets.TARGETS_FILE)
        else:
            assert stored.lower is not None
            student = load_tuned(load(), tuned)
            made = targets.tuned(stored.lower, pack, student, folder / targets.TARGETS_FILE, torch.device("cpu"))
        return [made[a : a + n].astype(np.float32) for a, n in zip(pack.start, pack.frames, strict=True)]

    return embed
