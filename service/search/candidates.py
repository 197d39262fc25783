"""Candidates: where tokens that are near the query's follow each other as they do in it, by votes of posting lists.

Each stretch of the query that one token stands for votes with the codes that are nearest to it, its own and their
neighbours in the codebook: every run of such a code in the archive is a vote for the place where the query's middle
would then lie. Votes are counted in bins of a few frames, and two bins side by side make a window, so that a slower
or quicker speaker's votes still come together (a generalised Hough transform of one dimension: Ballard 1981). A vote
weighs what its code is nearer than the first one that has none, times the frames it stands for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from model.tokens import TokenString
from service.search.localindex import Part, View
from service.search.located import Int64, Located
from service.search.rescoring import Tables

MOST_NEIGHBOURS, LEAST_NEIGHBOURS = 64, 8  # codes that vote for one token of the query
MOST_VOTES = 16_000_000  # of a query, on average: a larger archive gets fewer neighbours
SLACK = 0.75  # of the query's length, on each side of a window's middle
LEAST_SLACK_FRAMES = 2
MOST_CELLS = 40_000_000  # query frames times frames of windows: a long query says enough with fewer windows
LEAST_DEPTH = 100
HEAVIEST = 1 << 20  # what the heaviest votes of all tokens weigh together
_LEAST_LOG2, _MOST_LOG2 = 3, 6  # of a bin's frames
_RUN_BINS = 64  # looked through at once

UInt32 = npt.NDArray[np.uint32]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Votes:
    """Who votes: `codes`, `weights` uint32 and `shifts`, frames from a code to the query's middle; int64 [votes].

    `frames` is the query's length, and a bin has 2 ** `log2` frames.
    """

    codes: Int64
    weights: UInt32
    shifts: Int64
    frames: int
    log2: int

    @property
    def margin(self) -> int:
        """Frames before a shard's first that have bins: votes from its edge point beyond it, and the first is empty."""
        return self.frames + (1 << self.log2)


@dataclass(frozen=True)
class Windows(Located):
    """Frames [low, high) of a `segment` of a `part` of the view, and their `votes`; int64 [windows]."""

    low: Int64
    high: Int64
    votes: Int64


def neighbours(view: View, tokens: int, codebook_size: int) -> int:
    """How many codes vote for each of a query's `tokens`, so that there are about MOST_VOTES at most."""
    of_one = max(1.0, tokens * view.postings / max(1, codebook_size))
    return int(np.clip(MOST_VOTES / of_one, LEAST_NEIGHBOURS, min(MOST_NEIGHBOURS, codebook_size - 1)))


def make_votes(tokens: TokenString, tables: Tables, count: int) -> Votes:
    """The votes of a query: the `count` codes that are nearest, on average, to the frames of each of its tokens."""
    bounds = tokens.boundaries
    durations = np.diff(bounds)[:, None]
    near = np.add.reduceat(tables.similarity, bounds[:-1], axis=0) / durations
    count = min(count, near.shape[1] - 1)
    chosen = np.argpartition(-near, count, axis=1)[:, : count + 1]
    similarity = np.take_along_axis(near, chosen, axis=1)
    weights = (similarity - similarity.min(axis=1, keepdims=True)) * durations
    frames = tables.frames
    log2 = int(np.clip(np.log2(max(1, frames)) - 2, _LEAST_LOG2, _MOST_LOG2))
    # A bin has at most 64 runs: its count of 32 bits has room for all that votes weigh, once for each.
    scale = HEAVIEST / max(float(weights.max(axis=1).sum()), 1e-6)
    shifts = np.round(frames / 2 - (bounds[:-1] + bounds[1:]) / 2).astype(np.int64)
    whole = np.round(weights * scale).astype(np.uint32)
    some = whole > 0
    rows = np.broadcast_to(shifts[:, None], chosen.shape)
    return Votes(chosen[some].astype(np.int64), whole[some], rows[some], frames, log2)


def find(votes: Votes, view: View, alive: Sequence[Bool], depth: int) -> Windows:
    """At most `depth` windows with the most votes; `alive` bool [segments] of each part says where to look."""
    found: list[Windows] = []
    least, kept = 0, np.zeros(0, np.int64)
    for number, (part, mask) in enumerate(zip(view.parts, alive, strict=True)):
        windows = _of_part(votes, part, number, mask, least, depth)
        found.append(windows)
        kept = np.concatenate([kept, windows.votes])
        if len(kept) > depth:
            kept = np.partition(kept, len(kept) - depth)[len(kept) - depth :]
            least = int(kept[0])
    return best(Windows.joined(found), depth)


def best(windows: Windows, depth: int) -> Windows:
    """The `depth` with the most votes, in the order they have."""
    if len(windows) <= depth:
        return windows
    return windows.take(_most(windows.votes, depth))


def _most(votes: Int64, depth: int) -> Int64:
    """Which `depth` of more are the highest, ascending."""
    return np.asarray(np.sort(np.argpartition(-votes, depth - 1)[:depth]), np.int64)


def everything(view: View, alive: Sequence[Bool]) -> Windows:
    """All segments, whole."""
    found = []
    for number, (part, mask) in enumerate(zip(view.parts, alive, strict=True)):
        segment = np.flatnonzero(mask)
        first = part.shard.first
        found.append(
            Windows(
                np.full(len(segment), number), segment, first[segment], first[segment + 1],
                np.zeros(len(segment), np.int64),
            )
        )  # fmt: skip
    return Windows.joined(found)


def depth_for(frames: int, depth: int) -> int:
    """`depth`, or fewer windows for a query of so many frames that rescoring them would take too long."""
    return max(min(depth, LEAST_DEPTH), min(depth, int(MOST_CELLS / (frames * (2 * slack(frames) + 16)))))


def slack(frames: int) -> int:
    """Frames that a window has on each side of its middle."""
    return max(LEAST_SLACK_FRAMES, round(SLACK * frames))


def _of_part(votes: Votes, part: Part, number: int, alive: Bool, least: int, depth: int) -> Windows:
    """The windows of one part with more than `least` votes, at most `depth` where all segments are alive."""
    shard, size = part.shard, 1 << votes.log2
    margin = votes.margin
    bins = -(-(shard.frames + 2 * margin) // size) + _RUN_BINS + 2
    counts = np.zeros(bins, np.uint32)
    _vote(counts, shard.lists, shard.postings, votes.codes, votes.weights, votes.shifts + margin, votes.log2)
    at, height = np.empty(bins // 2 + 1, np.int64), np.empty(bins // 2 + 1, np.int64)
    peaks = _peaks(counts, least, at, height)
    at, height = at[:peaks], height[:peaks]
    if peaks > depth and alive.all():
        chosen = _most(height, depth)
        at, height = at[chosen], height[chosen]
    middle = ((at + 1) << votes.log2) - margin
    segment = shard.segment_of(middle)
    reach = slack(votes.frames) + size
    low = np.maximum(middle - reach, shard.first[segment])
    high = np.minimum(middle + reach, shard.first[segment + 1])
    there = alive[segment] & (high > low)
    windows = Windows(np.full(len(at), number), segment, low, high, height)
    return windows.take(there)


@numba.njit(nogil=True, cache=True)
def _vote(
    counts: UInt32,
    lists: Int64,
    postings: UInt32,
    codes: Int64,
    weights: UInt32,
    shifts: Int64,
    log2: int,
) -> None:
    """Add the weight of every posting of every code to the bin that it votes for."""
    for vote in range(len(codes)):
        weight, shift = weights[vote], shifts[vote]
        for at in range(lists[codes[vote]], lists[codes[vote] + 1]):
            counts[(np.int64(postings[at]) + shift) >> log2] += weight


@numba.njit(nogil=True, cache=True)
def _peaks(counts: UInt32, least: int, at: Int64, height: Int64) -> int:
    """Pairs of bins with more votes than `least`, than the pair before, and than none less than the pair after.

    Fills `at` with the first bin of each and `height` with its votes; how many.
    """
    found = 0
    for first in range(0, len(counts) - _RUN_BINS - 1, _RUN_BINS):
        highest = np.uint32(0)
        for b in range(first, first + _RUN_BINS + 1):
            highest = max(highest, counts[b])
        if 2 * np.int64(highest) <= least:
            continue
        for b in range(first, first + _RUN_BINS):
            here = np.int64(counts[b]) + counts[b + 1]
            if here > least:
                before = np.int64(counts[b - 1]) + counts[b] if b else np.int64(0)
                after = np.int64(counts[b + 1]) + counts[b + 2]
                if here > before and here >= after:
                    at[found], height[found] = b, here
                    found += 1
    return found
