"""Target sequences: the encoder's tokens at several prices of a change, with the frames at which they begin."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model.codebook import Codebook
from model.training.alignment import warp
from model.training.data import Pack

PRICES = (0.0, 0.1, 0.2, 0.3)  # cosine that a change of token must gain, one for each setting of the length knob

Float32 = npt.NDArray[np.float32]
Ids = npt.NDArray[np.uint16]


@dataclass(frozen=True, eq=False)
class Sequence:
    """Tokens int64 [n] without immediate repeats, and their first frames int64 [n], which rise from 0."""

    tokens: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]


def collapsed(ids: npt.NDArray[np.integer]) -> Sequence:
    """The sequence of framewise ids [frames], of one frame at least."""
    starts = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))
    return Sequence(ids[starts].astype(np.int64), starts.astype(np.int64))


def moved(sequence: Sequence, mine: Float32, its: Float32) -> Sequence:
    """The sequence of another hearing `its` [m, dim] at the times of `mine` [n, dim], along their DTW path.

    Tokens of which nothing is left, since a later one begins at the same frame of mine, are dropped.
    """
    path = warp(np.ascontiguousarray(mine @ its.T, np.float32))
    ids = np.zeros(len(its), np.int64)
    for token, start in zip(sequence.tokens, sequence.starts, strict=True):
        ids[start:] = token
    last = np.zeros(len(mine), np.int64)
    last[path[:, 0]] = path[:, 1]  # of several aligned frames the last
    return collapsed(ids[last])


def store_ids(embeddings: npt.NDArray[np.float16], pack: Pack, chosen: npt.NDArray[np.int64], codebook: Codebook,
              path: Path) -> Ids:  # fmt: skip
    """Framewise tokens at each price, uint16 [prices, frames of the pack], kept in `path` (.npy)."""
    if path.exists():
        return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]
    out = np.zeros((len(PRICES), len(embeddings)), np.uint16)
    priced = [Codebook(codebook.centroids, None, price) for price in PRICES]

    def one(recording: int) -> None:
        span = slice(int(pack.start[recording]), int(pack.start[recording] + pack.frames[recording]))
        rows = embeddings[span].astype(np.float32)
        for number, book in enumerate(priced):
            out[number, span] = book.tokenize(rows)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, chosen.tolist()))
    partial = path.with_suffix(".partial.npy")
    np.save(partial, out)
    partial.replace(path)
    return out
