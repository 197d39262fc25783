"""Figures of a whole task, by file and located in time, for all queries and for those in and out of vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from service.evaluation import twv
from service.evaluation.judging import Judged, Ranked, judge
from service.evaluation.metrics import average_precision, precision_at, reciprocal_rank
from service.evaluation.reliability import Reliability, reliability
from service.evaluation.tasks import TaskQuery
from service.evaluation.twv import FILE_BETA, LOCATED_BETA

GROUPS = ("all", "iv", "oov")


@dataclass(frozen=True)
class Figures:
    """Means over queries of which something is to be found.

    `mtwv` is the best term-weighted value over all thresholds, reached at `threshold`; `atwv` is the one at
    `atwv_threshold`, which knows nothing of what is right. `ece` is the expected calibration error (None without scores
    of .05 to 1).
    """

    queries: int
    map: float
    mrr: float
    p10: float
    mtwv: float
    threshold: float
    beta: float
    atwv: float
    atwv_threshold: float
    ece: float | None = None


@dataclass(frozen=True)
class Level:
    """Answers judged in one way, one for each query, with what a false alarm is counted against and what it costs.

    ATWV answers with the hits whose score is `threshold` or more.
    """

    judged: tuple[Judged, ...]
    oov: tuple[bool, ...]
    trials: float
    beta: float
    threshold: float

    def chosen(self, group: str = "all") -> list[Judged]:
        """Answers of a group's queries: "all", "iv" or "oov"."""
        return [j for j, oov in zip(self.judged, self.oov, strict=True) if group == "all" or oov == (group == "oov")]

    def curve(self) -> twv.Curve:
        """TWV over thresholds, all queries."""
        return twv.curve(self.judged, self.trials, self.beta)

    def actual(self) -> twv.Point:
        """What the threshold gives, all queries."""
        return twv.actual_twv(self.judged, self.trials, self.beta, self.threshold)

    def precision(self, ranks: int) -> list[float]:
        """P@1, P@2 ... P@ranks."""
        counted = [j for j in self.judged if j.relevant]
        return [float(np.mean([precision_at(j, rank) for j in counted])) for rank in range(1, ranks + 1)]

    def reliability(self, group: str = "all") -> Reliability:
        """How far scores are what they say; hits of queries of which nothing is to be found count here too."""
        hits = [hit for j in self.chosen(group) for hit in j.hits if hit[0] <= 1.0]
        return reliability([score for score, _ in hits], [right for _, right in hits])

    def figures(self, group: str) -> Figures | None:
        """Figures of a group, None where it has no query of which something is to be found."""
        judged = [j for j in self.chosen(group) if j.relevant]
        if not judged:
            return None
        best, at = twv.maximum_twv(judged, self.trials, self.beta)
        return Figures(
            queries=len(judged),
            map=float(np.mean([average_precision(j) for j in judged])),
            mrr=float(np.mean([reciprocal_rank(j) for j in judged])),
            p10=float(np.mean([precision_at(j, 10) for j in judged])),
            mtwv=best,
            threshold=at,
            beta=self.beta,
            atwv=twv.actual_twv(judged, self.trials, self.beta, self.threshold).twv,
            atwv_threshold=self.threshold,
            ece=self.reliability(group).error,
        )


def levels(
    queries: Sequence[TaskQuery],
    answers: Mapping[str, Sequence[Ranked]],
    recordings: int,
    audio_s: float,
    beta: float | None = None,
    threshold: float | None = None,
) -> dict[str, Level]:
    """ "file" and, where all references have times, "located". `answers` go by clip.

    `beta` and `threshold` replace those of both; the usual threshold is what beta implies.

    By file there is a trial for each recording, located one for each second.
    """
    timed = all(place.start_s is not None for q in queries for place in q.relevant)
    kinds = {"file": (float(recordings), FILE_BETA), "located": (audio_s, LOCATED_BETA)}
    out = {}
    for name, (trials, usual) in kinds.items():
        if name == "file" or timed:
            judged = tuple(judge(q, answers.get(q.clip, ()), name == "located") for q in queries)
            cost = usual if beta is None else beta
            least = twv.implied_threshold(judged, trials, cost) if threshold is None else threshold
            out[name] = Level(judged, tuple(q.oov for q in queries), trials, cost, least)
    return out


def figures_of(levels: Mapping[str, Level]) -> dict[str, Figures]:
    """Figures by "file/all", "file/iv", "file/oov", "located/all" ..., without groups that have nothing to be found."""
    table = {f"{name}/{group}": level.figures(group) for name, level in levels.items() for group in GROUPS}
    return {name: found for name, found in table.items() if found is not None}


def figures(
    queries: Sequence[TaskQuery],
    answers: Mapping[str, Sequence[Ranked]],
    recordings: int,
    audio_s: float,
    threshold: float | None = None,
    beta: float | None = None,
) -> dict[str, Figures]:
    """`levels` and `figures_of` in one."""
    return figures_of(levels(queries, answers, recordings, audio_s, beta, threshold))
