"""Ways to compare a query with every recording: edit distance of tokens, DTW on centroids, on codes, or on all.

On centroids and codes by the similarity of `service.search.rescoring`; on all, where there is no codebook, by cosines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from bench.accuracy.archive import THREADS, Int64, Recordings, pool
from bench.accuracy.embedders import Float32
from bench.accuracy.tokens import Tokens, UInt16
from model.tokens import TokenString
from service.search import rescoring

MATCHERS = ("edit", "centroids", "pq", "continuous")

Int32 = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Found:
    """The best stretch [start, end) of each recording in frames, int32, and its score, float32 [recordings]."""

    score: Float32
    start: Int32
    end: Int32

    @classmethod
    def nothing(cls, recordings: int, score: float = -1.0) -> Found:
        """To be filled."""
        empty = np.zeros(recordings, np.int32)
        return cls(np.full(recordings, score, np.float32), empty, empty.copy())


def matcher(name: str, recordings: Recordings, tokens: Tokens | None) -> Callable[[Float32], Found]:
    """What takes unit embeddings float32 [frames, dim] of a query and answers the best stretch of each recording."""
    count = len(recordings.names)

    def continuous(query: Float32) -> Found:
        found = Found.nothing(count)
        similarity = query @ recordings.embeddings.T
        warp(similarity, recordings.offsets, found.score, found.start, found.end)
        return found

    if name == "continuous":
        return continuous
    if tokens is None:
        raise ValueError(f"the matcher {name} needs tokens")
    codebook, no_codes = tokens.codebook, np.zeros((len(tokens.ids), 0), np.uint8)
    codes = rescoring.Codes(tokens.ids, tokens.pq if name == "pq" else no_codes, recordings.offsets)

    def look_up(query: Float32) -> Found:
        found = Found.nothing(count)
        m = rescoring.match(rescoring.make_tables(query, codebook, name == "pq"), codes, per_segment=1)
        first = recordings.offsets[m.region]
        found.score[m.region], found.start[m.region], found.end[m.region] = m.similarity, m.start - first, m.end - first
        return found

    def edit(query: Float32) -> Found:
        found = Found.nothing(count)
        ids = TokenString.from_frames(codebook.tokenize(query), recordings.frame_seconds).ids
        infix(ids, tokens.collapsed, tokens.offsets, found.score, found.start, found.end)
        shift = tokens.offsets[:-1] + np.arange(count)  # `first_frame` has one more for each recording
        start, end = tokens.first_frame[found.start + shift], tokens.first_frame[found.end + shift]
        return Found(found.score, start.astype(np.int32), end.astype(np.int32))

    return edit if name == "edit" else look_up


@numba.njit(nogil=True, cache=True)
def warp(similarity: Float32, offsets: Int64, score: Float32, start: Int32, end: Int32) -> None:
    """Subsequence DTW of [query frames, total], recording by recording, with the steps of `service.search.rescoring`.

    Fills score (the mean over query frames of the best path), start and end; recordings of no frames are left alone.
    """
    rows = len(similarity)
    for number in range(len(offsets) - 1):
        first, length = offsets[number], offsets[number + 1] - offsets[number]
        if length == 0:
            continue
        # Two frames of nothing lie before each row, so that steps from before the recording need no test.
        total, begin = np.full(length + 2, np.float32(-1e9)), np.zeros(length + 2, np.int32)
        next_total, next_begin = total.copy(), begin.copy()
        total[2:] = similarity[0, first : first + length]
        begin[2:] = np.arange(length)
        for i in range(1, rows):
            local = similarity[i, first : first + length]
            for j in range(length):
                # Choices without branches, so that eight frames or more go in step.
                best, one, two = total[j + 2], total[j + 1], total[j]
                from_, from_one, from_two = begin[j + 2], begin[j + 1], begin[j]
                from_ = from_one if one >= best else from_
                best = one if one >= best else best
                next_begin[j + 2] = from_two if two > best else from_
                next_total[j + 2] = (two if two > best else best) + local[j]
            total, next_total = next_total, total
            begin, next_begin = next_begin, begin
        at = total[2:].argmax()
        score[number], start[number], end[number] = total[at + 2] / np.float32(rows), begin[at + 2], at + 1


@numba.njit(nogil=True, cache=True)
def infix(query: UInt16, tokens: UInt16, offsets: Int64, score: Float32, start: Int32, end: Int32) -> None:
    """One minus the least edit distance of any infix over the query's length (Sellers 1980), recording by recording.

    Fills score in [0, 1], and the infix [start, end) in tokens of the recording.
    """
    rows = len(query)
    for number in range(len(offsets) - 1):
        first, length = offsets[number], offsets[number + 1] - offsets[number]
        distance, begin = np.zeros(length + 1, np.int32), np.arange(length + 1).astype(np.int32)
        for i in range(rows):
            left_above, begin_above = distance[0], begin[0]
            distance[0] = i + 1
            for j in range(length):
                best, from_ = left_above + (query[i] != tokens[first + j]), begin_above
                left_above, begin_above = distance[j + 1], begin[j + 1]
                if left_above + 1 < best:
                    best, from_ = left_above + 1, begin_above
                if distance[j] + 1 < best:
                    best, from_ = distance[j] + 1, begin[j]
                distance[j + 1], begin[j + 1] = best, from_
        at = distance.argmin()
        score[number] = np.float32(1.0) - np.float32(distance[at]) / np.float32(rows)
        start[number], end[number] = begin[at], at


def ask(
    find: Callable[[Float32], Found], heard: list[Float32], recordings: Recordings, threads: int = THREADS
) -> list[Found]:
    """The answer to each query; one without a frame finds nothing."""

    def one(query: Float32) -> Found:
        return find(query) if len(query) else Found.nothing(len(recordings.names))

    with pool(threads) as workers:
        return list(workers.map(one, heard))
