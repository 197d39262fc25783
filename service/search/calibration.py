"""From similarity to probability: measured against the query's own background, then a logistic map.

Per-query normalisation as in zero-resource term detection: a common query finds high similarities everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LEAST_SPREAD = 0.01  # similarities: a background that is all alike says little


@dataclass(frozen=True)
class Background:
    """Middle and spread of the similarities that a query has with segments at large."""

    median: float
    spread: float

    def distance(self, similarity: float) -> float:
        """How many spreads a similarity lies above the background."""
        return (similarity - self.median) / self.spread


@dataclass(frozen=True)
class LogisticMap:
    """score = 1 / (1 + exp(-(distance * d + similarity * s + bias))): d in spreads above the background, s a cosine."""

    distance: float
    similarity: float
    bias: float

    def score(self, distance: float, similarity: float) -> float:
        """A probability in [0, 1]; it rises with both."""
        x = self.distance * distance + self.similarity * similarity + self.bias
        return 1.0 / (1.0 + math.exp(-x)) if x > -700 else 0.0


# Fitted on the development tasks by `python -m bench.accuracy.calibrate`; docs/decisions.md has its output.
DEFAULT_MAP = LogisticMap(distance=0.769, similarity=10.47, bias=-11.241)


@dataclass(frozen=True)
class Evidence:
    """What a score rests on: `distance` in spreads above the background, and `similarity`, a mean cosine."""

    distance: float
    similarity: float

    @property
    def score(self) -> float:
        """The probability that the match is right."""
        return DEFAULT_MAP.score(self.distance, self.similarity)


def measure(similarities: npt.NDArray[np.float32]) -> Background:
    """Median and scaled median absolute deviation (as a standard deviation) of background similarities [segments]."""
    if len(similarities) == 0:
        return Background(0.0, 1.0)
    median = float(np.median(similarities))
    spread = 1.4826 * float(np.median(np.abs(similarities - median)))
    return Background(median, max(spread, LEAST_SPREAD))
