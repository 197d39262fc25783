"""Archives of any size from a real one: its own segments again and again, said by others.

A copy is no copy to the letter: each token becomes a neighbour in the codebook, as far away as the token of another
speaker was where both said the same word. That is measured on a task with times.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from model.codebook import Codebook
from model.tokens import TokenString
from service.evaluation.tasks import TaskQuery
from service.search import shard
from service.search.localindex import Part, View
from service.search.shard import Shard

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Real:
    """A real archive: its shards and its codebook."""

    shards: Sequence[Shard]
    codebook: Codebook

    @property
    def hours(self) -> float:
        """Of audio that has been cut into segments."""
        return sum(s.frames * s.frame_seconds for s in self.shards) / 3600.0


def confusions(queries: Sequence[TaskQuery], real: Real, recording_ids: dict[str, int]) -> Int64:
    """How many centroids are nearer to a speaker's token than another speaker's, frame by frame: ranks [frames].

    0 where both have the same token. The two are aligned by DTW of their centroids' cosines.
    """
    strings = _strings(real, set(recording_ids.values()))
    centroids, found = real.codebook.centroids, []
    for query in queries:
        one = _place(strings, recording_ids.get(query.source.name), query.source.start_s, query.source.end_s)
        for place in query.relevant:
            other = _place(strings, recording_ids.get(place.name), place.start_s, place.end_s)
            if one is None or other is None or place.name in query.exclude:
                continue
            a, b = one.frame_ids, other.frame_ids
            rows = centroids[a] @ centroids.T
            i, j = _path(rows[:, b])
            found.append((rows[i] > rows[i, b[j]][:, None]).sum(1))
    return np.concatenate(found).astype(np.int64)


def grown(real: Real, hours: float, ranks: Int64, seed: int = 0) -> View:
    """A view of at least so many hours; the real segments are there once, as they are."""
    rng = np.random.default_rng(seed)
    neighbours = _neighbours(real.codebook.centroids)
    parts, held, copy, waiting = [], 0.0, 0, list[Shard]()
    while held < hours:
        for one in real.shards:
            if held >= hours:
                break
            made = one if copy == 0 else _said_by_others(one, copy, ranks, neighbours, real.codebook.size, rng)
            held += made.frames * made.frame_seconds / 3600.0
            if waiting and sum(s.frames for s in waiting) + made.frames > shard.MAX_FRAMES:
                parts.append(shard.merge(waiting))
                waiting = []
            waiting.append(made)
        copy += 1
    parts.append(shard.merge(waiting))
    return View(0, tuple(Part(one, np.ones(one.segments, np.bool_)) for one in parts))


def _said_by_others(
    one: Shard, copy: int, ranks: Int64, neighbours: npt.NDArray[np.uint16], size: int, rng: np.random.Generator
) -> Shard:
    ids = one.ids.copy()
    begins = np.zeros(len(ids), np.bool_)
    begins[one.first[:-1][one.first[:-1] < len(ids)]] = True
    begins[1:] |= ids[1:] != ids[:-1]
    runs = np.flatnonzero(begins)
    said = neighbours[ids[runs], ranks[rng.integers(0, len(ranks), len(runs))]]
    recording = one.recording + copy * 10_000_000  # under new names
    return shard.assemble(
        said[np.cumsum(begins) - 1], one.pq, recording, one.fingerprint, one.position, one.start_s,
        np.diff(one.first), size, one.frame_seconds,
    )  # fmt: skip


def _neighbours(centroids: Float32) -> npt.NDArray[np.uint16]:
    """All centroids by their nearness to each: uint16 [K, K]."""
    out = np.empty((len(centroids), len(centroids)), np.uint16)
    for first in range(0, len(centroids), 512):
        out[first : first + 512] = np.argsort(-(centroids[first : first + 512] @ centroids.T), axis=1, kind="stable")
    return out


def _strings(real: Real, recordings: set[int]) -> dict[int, list[TokenString]]:
    out: dict[int, list[TokenString]] = {}
    for one in real.shards:
        for at in np.flatnonzero(np.isin(one.recording, list(recordings))):
            tokens = one.tokens(int(one.first[at]), int(one.first[at + 1]), int(at))
            out.setdefault(int(one.recording[at]), []).append(tokens)
    return out


def _place(
    strings: dict[int, list[TokenString]], recording: int | None, start_s: float | None, end_s: float | None
) -> TokenString | None:
    if recording is None or start_s is None or end_s is None:
        return None
    for tokens in strings.get(recording, []):
        first = round((start_s - tokens.offset) / tokens.frame_seconds)
        last = round((end_s - tokens.offset) / tokens.frame_seconds)
        if 0 <= first < last <= tokens.frames:
            return tokens.part(first, last)
    return None


@numba.njit(cache=True)
def _path(similarity: Float32) -> tuple[Int64, Int64]:
    """The best path of DTW from corner to corner of [rows, columns]: its rows and columns."""
    rows, columns = similarity.shape
    total = np.full((rows + 1, columns + 1), -1e9)
    total[0, 0] = 0.0
    for i in range(rows):
        for j in range(columns):
            total[i + 1, j + 1] = similarity[i, j] + max(total[i, j], total[i, j + 1], total[i + 1, j])
    i, j = rows - 1, columns - 1
    path_i, path_j = [i], [j]
    while i or j:
        if i and j and total[i, j] >= total[i, j + 1] and total[i, j] >= total[i + 1, j]:
            i, j = i - 1, j - 1
        elif i and (not j or total[i, j + 1] >= total[i + 1, j]):
            i -= 1
        else:
            j -= 1
        path_i.append(i)
        path_j.append(j)
    return np.array(path_i), np.array(path_j)


def segments_of(view: View) -> Iterator[tuple[int, npt.NDArray[np.uint16]]]:
    """Every segment's number, counted through all shards, and its collapsed tokens."""
    number = 0
    for part in view.parts:
        one = part.shard
        for at in range(one.segments):
            ids = one.ids[one.first[at] : one.first[at + 1]]
            yield number, ids[np.concatenate([[True], ids[1:] != ids[:-1]])] if len(ids) else ids
            number += 1
