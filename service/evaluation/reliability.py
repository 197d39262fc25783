"""Whether a score keeps its promise: of hits that score .9, nine in ten should be right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BINS = 10
LEAST_SCORE = 0.05  # nearly all hits lie below and are wrong, as they say: with them every error would be near zero

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Bin:
    """Hits that score from `low` to `high`: how many, their mean score, and the share of right ones among them."""

    low: float
    high: float
    hits: int
    score: float
    right: float


@dataclass(frozen=True)
class Reliability:
    """Bins that have hits, and the expected calibration error (None where no hit is counted)."""

    bins: tuple[Bin, ...]
    error: float | None


def reliability(
    scores: npt.ArrayLike,
    right: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    *,
    least: float = LEAST_SCORE,
    bins: int = BINS,
) -> Reliability:
    """How far `scores` [hits] in [0, 1] are the share of `right` [hits] ones; hits below `least` are left out.

    Bins are of equal width. The error is the mean of |mean score - share of right ones| over bins, by their weight
    (Naeini et al. 2015). `weights` [hits] are one each by default.
    """
    score, correct = np.asarray(scores, np.float64), np.asarray(right, np.float64)
    weight = np.ones_like(score) if weights is None else np.asarray(weights, np.float64)
    counted = score >= least
    number = np.clip((score * bins).astype(np.int64), 0, bins - 1)
    table: list[Bin] = []
    error = 0.0
    for b in range(bins):
        at = counted & (number == b)
        if at.any():
            means = [float(np.average(values[at], weights=weight[at])) for values in (score, correct)]
            table.append(Bin(b / bins, (b + 1) / bins, int(at.sum()), *means))
            error += abs(means[0] - means[1]) * float(weight[at].sum() / weight[counted].sum())
    return Reliability(tuple(table), error if table else None)
