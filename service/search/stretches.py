"""Stretches of an archive's segments that match a query, as arrays: rescored, told apart, and given their times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numba
import numpy as np
import numpy.typing as npt

from model.tokens import TokenString
from service.search import rescoring
from service.search.candidates import Windows
from service.search.localindex import View
from service.search.located import Int64, Located
from service.search.rescoring import Float32, Tables


@dataclass(frozen=True)
class Stretches(Located):
    """Frames [start, end) of a `segment` of a `part` of the view, with their `similarity`; arrays [stretches]."""

    start: Int64
    end: Int64
    similarity: Float32

    @classmethod
    def nothing(cls) -> Self:
        """No stretch."""
        none = np.zeros(0, np.int64)
        return cls(none, none, none, none, np.zeros(0, np.float32))

    def tokens(self, view: View, number: int) -> TokenString:
        """The token string of one."""
        shard = view.parts[int(self.part[number])].shard
        return shard.tokens(int(self.start[number]), int(self.end[number]), int(self.segment[number]))


@dataclass(frozen=True)
class Times:
    """Where stretches lie: `recording` and `fingerprint` int64, `start_s` and `end_s` float64; arrays [stretches]."""

    recording: Int64
    fingerprint: Int64
    start_s: npt.NDArray[np.float64]
    end_s: npt.NDArray[np.float64]


def rescore(tables: Tables, view: View, windows: Windows, per_window: int = 1) -> Stretches:
    """The best matches within each window, at most `per_window`."""
    found = []
    for those, shard in view.shards_of(windows.part):
        low, high = windows.low[those], windows.high[those]
        m = rescoring.match_regions(tables, shard.ids, shard.pq, low, high, per_window)
        region = those[m.region]
        found.append(Stretches(windows.part[region], windows.segment[region], m.start, m.end, m.similarity))
    return Stretches.joined(found)


def similarity_at(tables: Tables, view: View, stretches: Stretches, slack: int) -> Float32:
    """How like another example each stretch is, give or take `slack` frames on each side: float32 [stretches]."""
    out = np.zeros(len(stretches), np.float32)
    for those, shard in view.shards_of(stretches.part):
        segment = stretches.segment[those]
        low = np.maximum(stretches.start[those] - slack, shard.first[segment])
        high = np.minimum(stretches.end[those] + slack, shard.first[segment + 1])
        m = rescoring.match_regions(tables, shard.ids, shard.pq, low, high)
        out[those[m.region]] = m.similarity
    return out


def distinct(stretches: Stretches) -> Stretches:
    """Best first, without those that overlap a better one of their segment."""
    order = np.lexsort((stretches.start, stretches.segment, stretches.part, -stretches.similarity))
    stretches = stretches.take(order)
    _, group = np.unique(stretches.part << 40 | stretches.segment, return_inverse=True)
    group = np.asarray(group, np.int64).reshape(-1)
    groups = int(group.max()) + 1 if len(group) else 0
    return stretches.take(_clear(group, groups, stretches.start, stretches.end))


@numba.njit(nogil=True, cache=True)
def _clear(group: Int64, groups: int, start: Int64, end: Int64) -> npt.NDArray[np.bool_]:
    """Which stretches overlap none before them in their group: a list of those kept is walked for each."""
    last = np.full(groups, -1, np.int64)
    before = np.full(len(group), -1, np.int64)
    kept = np.zeros(len(group), np.bool_)
    for i in range(len(group)):
        other = last[group[i]]
        while other >= 0 and (start[i] >= end[other] or end[i] <= start[other]):
            other = before[other]
        if other < 0:
            kept[i] = True
            before[i] = last[group[i]]
            last[group[i]] = i
    return kept


def times_of(stretches: Stretches, view: View) -> Times:
    """Recordings and seconds of stretches."""
    count = len(stretches)
    out = Times(np.zeros(count, np.int64), np.zeros(count, np.int64), np.zeros(count), np.zeros(count))
    for those, shard in view.shards_of(stretches.part):
        segment = stretches.segment[those]
        out.recording[those], out.fingerprint[those] = shard.recording[segment], shard.fingerprint[segment]
        origin = shard.start_s[segment] - shard.first[segment] * shard.frame_seconds
        out.start_s[those] = origin + stretches.start[those] * shard.frame_seconds
        out.end_s[those] = origin + stretches.end[those] * shard.frame_seconds
    return out
