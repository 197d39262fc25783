"""Small archives in memory for tests of the search."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from model.codebook import Codebook
from model.tokens import TokenString
from service.search import shard
from service.search.localindex import Part, View
from service.search.shard import Shard, StoredSegment

FRAME_S = 0.04


def unit(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    """Random unit vectors."""
    x = rng.standard_normal((rows, dim)).astype(np.float32)
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), np.float32)


def shard_of(
    segments: Sequence[np.ndarray], codebook: Codebook, recordings: Sequence[int] | None = None, parts: int = 0
) -> Shard:
    """A shard of frame ids, each segment ten seconds after the one before; codes are random."""
    rng = np.random.default_rng(7)
    stored = []
    for number, ids in enumerate(segments):
        pq = rng.integers(0, 256, (len(ids), parts)).astype(np.uint8) if parts else None
        tokens = TokenString.from_frames(np.asarray(ids, np.uint16), FRAME_S, 10.0 * number, pq)
        recording = number if recordings is None else recordings[number]
        stored.append(StoredSegment(recording, 1_000 + recording, number, tokens))
    return shard.build(stored, codebook.size, parts)


def view_of(*shards: Shard) -> View:
    """A view of shards whose segments are all alive."""
    return View(1, tuple(Part(one, np.ones(one.segments, np.bool_)) for one in shards))
