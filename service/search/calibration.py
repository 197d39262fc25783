"""From similarity to probability: measured against the query's own background, then a logistic map.

Per-query normalisation as in zero-resource term detection: a common query finds high similarities everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from model.declaration import TokenizerInfo
from service.search import rescoring
from service.search.localindex import View
from service.search.rescoring import Codes, Float32, Tables

SAMPLE_SEGMENTS = 300
SAMPLE_S = 4.0  # of each: the best of a longer stretch is higher, and segments are not all of a length
LEAST_SPREAD = 0.01  # similarities: a background that is all alike says little


@dataclass(frozen=True)
class Background:
    """Middle and spread of the similarities that a query has with segments at large."""

    median: float
    spread: float

    def distance(self, similarity: Float32) -> Float32:
        """How many spreads similarities lie above the background."""
        return (similarity - np.float32(self.median)) / np.float32(self.spread)


@dataclass(frozen=True)
class LogisticMap:
    """score = 1 / (1 + exp(-x)), x = distance * d + similarity * s + deep * e + bias.

    d in spreads above the background, s the similarity of `rescoring`, e that of deep rescoring.
    """

    distance: float
    similarity: float
    bias: float
    deep: float = 0.0

    def scores(self, evidence: Evidence) -> npt.NDArray[np.float64]:
        """Probabilities in [0, 1]."""
        x = self.distance * np.asarray(evidence.distance, np.float64) + self.similarity * evidence.similarity
        if self.deep and evidence.deep is not None:
            x += self.deep * evidence.deep
        return np.asarray(1.0 / (1.0 + np.exp(-np.clip(x + self.bias, -700.0, 700.0))))


# Fitted by `python -m bench.accuracy.calibrate` on the development tasks; docs/decisions.md has its output.
DEFAULT_MAP = LogisticMap(distance=0.705, similarity=9.889, bias=-10.632)  # of tokenizers that bring none
DEEP_MAP = LogisticMap(distance=0.429, similarity=0.014, deep=12.038, bias=-10.547)  # with the `accurate` tokenizer


def map_of(info: TokenizerInfo) -> LogisticMap:
    """The map that a tokenizer brings along, or the default."""
    return DEFAULT_MAP if info.score_map is None else LogisticMap(*info.score_map)


@dataclass(frozen=True)
class Evidence:
    """What scores rest on, arrays [places]: the `similarity` that `rescoring` found, and how many spreads that lies
    above the background, `distance`.

    `deep` is the similarity of deep rescoring, not a number where there was none; None where nothing was rescored so.
    """

    distance: Float32
    similarity: Float32
    deep: Float32 | None = None
    score_map: LogisticMap = DEFAULT_MAP

    @property
    def scores(self) -> npt.NDArray[np.float64]:
        """The probability that each place is right."""
        shallow = self.score_map.scores(self)
        return shallow if self.deep is None else np.where(np.isnan(self.deep), shallow, DEEP_MAP.scores(self))

    def take(self, chosen: npt.NDArray[np.integer] | Sequence[int]) -> Evidence:
        """That of some of the places."""
        deep = None if self.deep is None else self.deep[chosen]
        return replace(self, distance=self.distance[chosen], similarity=self.similarity[chosen], deep=deep)


def measure(similarities: Float32) -> Background:
    """Median and scaled median absolute deviation (as a standard deviation) of background similarities [segments]."""
    if len(similarities) == 0:
        return Background(0.0, 1.0)
    median = float(np.median(similarities))
    spread = 1.4826 * float(np.median(np.abs(similarities - median)))
    return Background(median, max(spread, LEAST_SPREAD))


def background_of(tables: Tables, sample: Codes) -> Background:
    """What the best match in each segment of a sample is like."""
    return measure(rescoring.match(tables, sample, per_segment=1).similarity)


def sample_of(view: View) -> Codes:
    """The codes of a pseudo-random sample of an archive's segments: the same one as long as the archive is the same."""
    part, segment, order = [], [], []
    for number, one in enumerate(view.parts):
        there = np.flatnonzero(one.alive)
        part.append(np.full(len(there), number))
        segment.append(there)
        order.append(_mixed(one.shard.recording[there], one.shard.position[there]))
    if not part:
        return rescoring.gather([], 0)
    chosen = np.argsort(np.concatenate(order), kind="stable")[:SAMPLE_SEGMENTS]
    strings = []
    for number, at in zip(np.concatenate(part)[chosen], np.concatenate(segment)[chosen], strict=True):
        shard = view.parts[number].shard
        first, last = int(shard.first[at]), int(shard.first[at + 1])
        strings.append(shard.tokens(first, min(last, first + max(1, round(SAMPLE_S / shard.frame_seconds))), at))
    return rescoring.gather(strings, view.parts[0].shard.pq.shape[1])


def _mixed(recording: npt.NDArray[np.int64], position: npt.NDArray[np.int32]) -> npt.NDArray[np.uint64]:
    """A number for each segment that looks random (the finish of SplitMix64: Steele, Lea and Flood 2014)."""
    x = recording.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + position.astype(np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)), np.uint64)
