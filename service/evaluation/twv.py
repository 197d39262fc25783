"""Term-weighted value: at one threshold (actual), over all thresholds (a curve), and its maximum.

TWV = 1 - mean over queries of (misses / relevant + beta * false alarms / (trials - relevant)), one threshold for all
queries (Fiscus et al. 2007, NIST STD 2006). Queries of which nothing is to be found do not count. Answering nothing
gives zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.evaluation.judging import Judged

FILE_BETA = 12.49  # one trial per recording: QUESST 2014, cost 1 to 100 at a prior of .0008
LOCATED_BETA = 999.9  # one trial per second of audio: NIST STD 2006

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    """What a threshold gives: TWV, and the means over queries of miss rate and false alarm rate."""

    threshold: float
    twv: float
    miss: float
    false_alarm: float


@dataclass(frozen=True, eq=False)
class Curve:
    """A point for each score that a hit has, [points] in falling order; answering nothing is no point of it."""

    thresholds: Float64
    twv: Float64
    miss: Float64
    false_alarm: Float64

    def __len__(self) -> int:
        return len(self.thresholds)

    def point(self, number: int) -> Point:
        """One point."""
        columns = (self.thresholds, self.twv, self.miss, self.false_alarm)
        return Point(*(float(column[number]) for column in columns))

    def maximum(self) -> Point:
        """The best point, or that of answering nothing where no point is above zero."""
        if len(self) and self.twv.max() > 0:
            return self.point(int(self.twv.argmax()))
        return Point(1.0, 0.0, 1.0, 0.0)

    def thinned(self, points: int) -> Curve:
        """At most about so many points: half of them even in threshold, half in the logarithm of their number.

        The maximum and both ends are among them. Most hits have low scores: by number alone, the part that matters
        would have hardly a point.
        """
        if len(self) <= points:
            return self
        last, half = len(self) - 1, max(2, points // 2 - 2)
        even = np.linspace(self.thresholds[0], self.thresholds[-1], half)
        by_threshold = np.searchsorted(-self.thresholds, -even, side="right") - 1
        by_number = np.geomspace(1, len(self), half) - 1
        chosen = np.concatenate([by_threshold, by_number.astype(np.int64), [0, int(self.twv.argmax()), last]])
        kept = np.unique(np.clip(chosen, 0, last))
        return Curve(self.thresholds[kept], self.twv[kept], self.miss[kept], self.false_alarm[kept])


def curve(judged: Sequence[Judged], trials: float, beta: float) -> Curve:
    """TWV, miss rate and false alarm rate for each threshold; hits of equal score pass it together."""
    counted = [j for j in judged if j.relevant]
    scores, found, alarms = [], [], []
    for j in counted:
        for score, correct in j.hits:
            scores.append(score)
            found.append(1.0 / j.relevant if correct else 0.0)
            alarms.append(0.0 if correct else 1.0 / max(1.0, trials - j.relevant))
    order = np.argsort(-np.array(scores), kind="stable")
    thresholds = np.array(scores)[order]
    miss = 1.0 - np.cumsum(np.array(found)[order]) / max(1, len(counted))
    false_alarm = np.cumsum(np.array(alarms)[order]) / max(1, len(counted))
    last = np.flatnonzero(np.append(thresholds[1:] != thresholds[:-1], True)) if len(order) else order
    return Curve(thresholds[last], (1.0 - miss - beta * false_alarm)[last], miss[last], false_alarm[last])


def maximum_twv(judged: Sequence[Judged], trials: float, beta: float) -> tuple[float, float]:
    """Best TWV over one threshold for all queries (MTWV), and that threshold; (0, 1) where silence is best."""
    best = curve(judged, trials, beta).maximum()
    return best.twv, best.threshold


def implied_threshold(judged: Sequence[Judged], trials: float, beta: float) -> float:
    """The score from which a hit is worth its risk, where scores are probabilities: beta n / (trials - n + beta n).

    n, how often a term is said, is what the scores themselves lead to expect: the mean over queries of their sum.
    """
    if not judged:
        return 1.0
    expected = sum(score for j in judged for score, _ in j.hits) / len(judged)
    expected = min(max(expected, 1.0), trials / 2)
    return beta * expected / (trials - expected + beta * expected)


def actual_twv(judged: Sequence[Judged], trials: float, beta: float, threshold: float) -> Point:
    """What is there at a threshold that was chosen beforehand (ATWV): hits with that score or more are answered."""
    miss = false_alarm = 0.0
    counted = [j for j in judged if j.relevant]
    for j in counted:
        answered = [correct for score, correct in j.hits if score >= threshold]
        right = sum(answered)
        miss += (1.0 - right / j.relevant) / len(counted)
        false_alarm += (len(answered) - right) / max(1.0, trials - j.relevant) / len(counted)
    if not counted:
        return Point(threshold, 0.0, 1.0, 0.0)
    return Point(threshold, 1.0 - miss - beta * false_alarm, miss, false_alarm)
