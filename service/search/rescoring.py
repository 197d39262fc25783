"""Subsequence dynamic time warping of a query's embeddings against stored codes, by table look-up.

Every query frame is matched once; between two of them the recording may stand still, go on by one frame, or skip one
(asymmetric steps without weights: Sakoe and Chiba 1978, type 2 in one direction), so a path runs at zero to twice the
query's speed and its similarity is the mean over query frames. The tables follow asymmetric product quantisation
(Jégou, Douze and Schmid 2011): similarities are computed once per code, not once per frame. A similarity is a cosine
less how crowded it is about the centroid: what is near everything is no find (CSLS: Conneau et al. 2018). Where codes
are tokens of further codebooks, it is the mean over all of a frame's tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numba
import numpy as np
import numpy.typing as npt

from model.codebook import Codebook, further_tokens
from model.tokens import TokenString

Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

HITS_PER_SEGMENT = 3
_NOTHING = np.float32(-1e9)
_BLOCK = 16  # frames of a recording that are looked up together: a cache line


@dataclass(frozen=True)
class Tables:
    """Of query frames with codes: cosines `token` float32 [frames, K], and `residual` float32 [frames, M, codes].

    `crowding` float32 [K] is what a cosine with each centroid is worth less, see `Codebook.crowding`. Codes of a
    product quantiser are worth what `residual` says on top of that. Where they are tokens, `residual` has cosines,
    `further_crowding` float32 [M, codes] is what those are worth less, and all count alike.
    """

    token: Float32
    residual: Float32
    crowding: Float32
    further_crowding: Float32 | None = None

    @cached_property
    def similarity(self) -> Float32:
        """Of frames and tokens of the first codebook: float32 [frames, K]."""
        return self.token - self.crowding

    @cached_property
    def shares(self) -> tuple[Float32, Float32]:
        """What a token and what each code adds to a similarity: float32 [K, frames] and [M, codes, frames].

        A frame of a recording is looked up for all frames of the query at once, so those lie side by side.
        """
        token, residual = self.similarity, self.residual
        if self.further_crowding is not None:
            token, residual = token * self.share, (residual - self.further_crowding) * self.share
        return np.ascontiguousarray(token.T), np.ascontiguousarray(np.moveaxis(residual, 0, 2))

    @property
    def share(self) -> np.float32:
        """Of the first codebook in a cosine."""
        return np.float32(1.0 if self.further_crowding is None else 1.0 / (1 + self.residual.shape[1]))

    def each(self, codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
        """Codes uint8 [frames, bytes] as numbers in the tables, [frames, M]."""
        return codes if self.further_crowding is None else further_tokens(codes)

    @property
    def frames(self) -> int:
        """Of the query."""
        return len(self.token)


@dataclass(frozen=True)
class Codes:
    """Codes of stretches end to end: `ids` uint16 [total], `pq` uint8 [total, bytes], `offsets` int64 [n + 1]."""

    ids: npt.NDArray[np.uint16]
    pq: npt.NDArray[np.uint8]
    offsets: Int64


@dataclass(frozen=True)
class Matches:
    """Frames [start, end) of the codes, each found in a `region`, with their mean similarity; [matches]."""

    region: Int64
    start: Int64
    end: Int64
    similarity: Float32

    def __len__(self) -> int:
        return len(self.region)


def make_tables(query: Float32, codebook: Codebook, residual: bool = True) -> Tables:
    """Tables of unit query embeddings float32 [frames, dim]."""
    token = np.ascontiguousarray(query @ codebook.centroids.T)
    if codebook.further is not None and residual:
        cosines = np.stack([query @ centroids.T for centroids in codebook.further], axis=1)
        return Tables(token, cosines, codebook.crowding, np.stack([other.crowding for other in codebook.others]))
    if codebook.pq is None or not residual:
        return Tables(token, np.zeros((len(query), 0, 256), np.float32), codebook.crowding)
    parts, size, width = codebook.pq.shape
    table = np.zeros((len(query), parts, 256), np.float32)
    for part in range(parts):
        table[:, part, :size] = query[:, part * width : (part + 1) * width] @ codebook.pq[part].T
    return Tables(token, table, codebook.crowding)


def gather(strings: list[TokenString], parts: int) -> Codes:
    """Codes of token strings, frame by frame; `parts` is the bytes a frame of the codebook they will meet."""
    frames = np.array([string.frames for string in strings], np.int64)
    offsets = np.concatenate([[0], np.cumsum(frames)]).astype(np.int64)
    ids = np.concatenate([string.frame_ids for string in strings]) if strings else np.zeros(0, np.uint16)
    if parts == 0:
        return Codes(ids, np.zeros((len(ids), 0), np.uint8), offsets)
    missing = [string for string in strings if string.pq is None or string.pq.shape[1] != parts]
    if missing:
        raise ValueError(f"{len(missing)} token strings have no codes of {parts} bytes a frame")
    pq = np.concatenate([s.pq for s in strings if s.pq is not None]) if strings else np.zeros((0, parts), np.uint8)
    return Codes(ids, pq, offsets)


def match(tables: Tables, codes: Codes, per_segment: int = HITS_PER_SEGMENT) -> Matches:
    """The best non-overlapping matches of each stretch, at most `per_segment`, best first within a stretch."""
    return match_regions(tables, codes.ids, codes.pq, codes.offsets[:-1], codes.offsets[1:], per_segment)


def match_regions(
    tables: Tables,
    ids: npt.NDArray[np.uint16],
    pq: npt.NDArray[np.uint8],
    low: Int64,
    high: Int64,
    per_region: int = 1,
) -> Matches:
    """The best non-overlapping matches within frames [low, high) of each region, at most `per_region`, best first."""
    regions = len(low)
    similarity = np.full((regions, per_region), _NOTHING, np.float32)
    start = np.zeros((regions, per_region), np.int64)
    end = np.zeros((regions, per_region), np.int64)
    token, residual = tables.shares
    ids, codes = ids.view(), (tables.each(pq) if residual.shape[1] else pq).view()
    ids.flags.writeable = codes.flags.writeable = False  # one kind of array, one compiled kernel
    _match(token, residual, ids, codes, low, high, similarity, start, end)
    region, rank = np.nonzero(similarity > _NOTHING / 2)
    return Matches(region, start[region, rank], end[region, rank], similarity[region, rank])


@numba.njit(nogil=True, cache=True)
def _match(
    token: Float32,
    residual: Float32,
    ids: npt.NDArray[np.uint16],
    codes: npt.NDArray[np.uint8] | npt.NDArray[np.uint16],
    low: Int64,
    high: Int64,
    similarity: Float32,
    start: Int64,
    end: Int64,
) -> None:
    """Fill similarity, start and end [regions, per_region]; the tables are those of `Tables.shares`."""
    frames, parts = token.shape[1], len(residual)
    longest = 0
    for region in range(len(low)):
        longest = max(longest, high[region] - low[region])
    # Two silent frames lie before each row, so that steps from before the region need no test.
    total = np.empty(longest + 2, np.float32)
    begin = np.empty(longest + 2, np.int32)
    next_total = np.empty(longest + 2, np.float32)
    next_begin = np.empty(longest + 2, np.int32)
    local = np.empty((frames, longest), np.float32)
    block = np.empty((_BLOCK, frames), np.float32)
    for region in range(len(low)):
        first = low[region]
        length = high[region] - first
        if length <= 0:
            continue
        total[:2] = _NOTHING
        next_total[:2] = _NOTHING
        begin[:2] = 0
        next_begin[:2] = 0
        for j in range(0, length, _BLOCK):
            count = min(_BLOCK, length - j)
            for k in range(count):
                row = token[ids[first + j + k]]
                for i in range(frames):
                    block[k, i] = row[i]
                for part in range(parts):
                    row = residual[part, codes[first + j + k, part]]
                    for i in range(frames):
                        block[k, i] += row[i]
            for i in range(frames):
                for k in range(count):
                    local[i, j + k] = block[k, i]
        for i in range(frames):
            row = local[i]
            if i == 0:
                for j in range(length):
                    total[j + 2] = row[j]
                    begin[j + 2] = j
                continue
            for j in range(length):
                best, from_ = total[j + 2], begin[j + 2]
                if total[j + 1] >= best:
                    best, from_ = total[j + 1], begin[j + 1]
                if total[j] > best:
                    best, from_ = total[j], begin[j]
                next_total[j + 2] = best + row[j]
                next_begin[j + 2] = from_
            total, next_total = next_total, total
            begin, next_begin = next_begin, begin
        if similarity.shape[1] == 1:
            at = 0
            for j in range(length):
                if total[j + 2] > total[at + 2]:
                    at = j
            similarity[region, 0] = total[at + 2] / np.float32(frames)
            start[region, 0], end[region, 0] = first + begin[at + 2], first + at + 1
            continue
        _pick(
            total[2 : length + 2] / np.float32(frames),
            begin[2 : length + 2],
            first,
            similarity[region],
            start[region],
            end[region],
        )


@numba.njit(nogil=True, cache=True)
def _pick(score: Float32, begin: Int32, first: int, similarity: Float32, start: Int64, end: Int64) -> None:
    """Best ends first; an end whose stretch overlaps one that was taken is passed over."""
    order = np.argsort(-score, kind="mergesort")  # of equals the first
    taken = 0
    for at in order:
        if taken == len(similarity) or score[at] < _NOTHING / 2:
            break
        clear = True
        for k in range(taken):
            if first + begin[at] < end[k] and first + at >= start[k]:
                clear = False
        if clear:
            similarity[taken], start[taken], end[taken] = score[at], first + begin[at], first + at + 1
            taken += 1
