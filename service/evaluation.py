"""How good the answers are: average precision, reciprocal rank, precision at ten, term-weighted value.

A task is a JSON file: {"queries": [{"clip", "source": [name, start, end], "term", "exclude": [names],
"relevant": [[name, start, end], ...], "oov"?}]}; clips lie beside it, names are relative to the archive's folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

TOLERANCE_S = 0.5  # a located hit counts if its midpoint lies this near to a reference
FILE_BETA = 12.49  # one trial per recording: QUESST 2014, cost 1 to 100 at a prior of .0008
LOCATED_BETA = 999.9  # one trial per second of audio: NIST STD 2006


@dataclass(frozen=True)
class Place:
    """A stretch of a recording in seconds; times are None where only the recording is known."""

    name: str
    start_s: float | None = None
    end_s: float | None = None


@dataclass(frozen=True)
class Ranked:
    """One hit of an answer."""

    name: str
    start_s: float
    end_s: float
    score: float


@dataclass(frozen=True)
class TaskQuery:
    """A clip, its own source, what may not count, and all places that should be found."""

    clip: str
    source: Place
    exclude: frozenset[str]
    relevant: tuple[Place, ...]
    oov: bool


@dataclass(frozen=True)
class Judged:
    """An answer against its references: (score, right) of each hit that counts, and how many were to be found."""

    hits: tuple[tuple[float, bool], ...]
    relevant: int


@dataclass(frozen=True)
class Figures:
    """Means over queries; `mtwv` is the best term-weighted value over all thresholds, reached at `threshold`."""

    queries: int
    map: float
    mrr: float
    p10: float
    mtwv: float
    threshold: float
    beta: float


class TaskError(ValueError):
    """A task file that cannot be read."""

    code = "task_invalid"


def read_task(path: Path) -> list[TaskQuery]:
    """Queries of a task file. Raises TaskError."""
    try:
        task = json.loads(path.read_text(encoding="utf-8"))
        return [
            TaskQuery(
                clip=q["clip"],
                source=Place(*q["source"]),
                exclude=frozenset(q.get("exclude", ())) | {q["source"][0]},
                relevant=tuple(Place(*r) for r in q["relevant"]),
                oov=bool(q.get("oov", False)),
            )
            for q in task["queries"]
        ]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise TaskError(f"{path} is not a task file: {type(error).__name__}: {error}") from error


def judge(query: TaskQuery, hits: Sequence[Ranked], located: bool) -> Judged:
    """Which hits are right.

    By file, a recording counts once, at its best hit; located, each reference counts once, at its best hit. Hits in
    excluded recordings, the query's own among them, do not count at all.
    """
    judged: list[tuple[float, bool]] = []
    seen: set[object] = set()
    for hit in hits:
        if hit.name in query.exclude:
            continue
        if located:
            reference = _reference(query, hit)
            if reference is not None and reference in seen:
                continue
            seen.add(reference)
            judged.append((hit.score, reference is not None))
        elif hit.name not in seen:
            seen.add(hit.name)
            judged.append((hit.score, any(hit.name == place.name for place in query.relevant)))
    count = len(query.relevant) if located else len({place.name for place in query.relevant})
    return Judged(tuple(judged), count)


def _reference(query: TaskQuery, hit: Ranked) -> int | None:
    middle_s = (hit.start_s + hit.end_s) / 2
    for number, place in enumerate(query.relevant):
        if place.name != hit.name or place.start_s is None or place.end_s is None:
            continue
        if place.start_s - TOLERANCE_S <= middle_s <= place.end_s + TOLERANCE_S:
            return number
    return None


def average_precision(judged: Judged) -> float:
    """Mean, over ALL relevant items, of the precision at each one found; those not found count zero."""
    right, total = 0, 0.0
    for rank, (_, correct) in enumerate(judged.hits, 1):
        if correct:
            right += 1
            total += right / rank
    return total / judged.relevant if judged.relevant else 0.0


def reciprocal_rank(judged: Judged) -> float:
    """One over the rank of the first right hit; zero where there is none."""
    return next((1.0 / rank for rank, (_, correct) in enumerate(judged.hits, 1) if correct), 0.0)


def precision_at(judged: Judged, rank: int) -> float:
    """Share of right hits among the first `rank`."""
    return sum(correct for _, correct in judged.hits[:rank]) / rank


def maximum_twv(judged: Sequence[Judged], trials: float, beta: float) -> tuple[float, float]:
    """Best term-weighted value over one threshold for all queries, and that threshold (NIST STD 2006).

    TWV = 1 - mean over queries of (misses / relevant + beta * false alarms / (trials - relevant)). Answering nothing
    gives zero.
    """
    scores, steps = [], []
    counted = [j for j in judged if j.relevant]
    for j in counted:
        for score, correct in j.hits:
            scores.append(score)
            steps.append(1.0 / j.relevant if correct else -beta / max(1.0, trials - j.relevant))
    if not scores:
        return 0.0, 1.0
    order = np.argsort(-np.array(scores), kind="stable")
    sorted_scores = np.array(scores)[order]
    value = np.cumsum(np.array(steps)[order]) / len(counted)
    # Hits of equal score pass a threshold together.
    last = np.flatnonzero(np.append(sorted_scores[1:] != sorted_scores[:-1], True))
    best = last[np.argmax(value[last])]
    if value[best] <= 0:
        return 0.0, 1.0
    return float(value[best]), float(sorted_scores[best])


def figures(
    queries: Sequence[TaskQuery], answers: Mapping[str, Sequence[Ranked]], recordings: int, audio_s: float
) -> dict[str, Figures]:
    """Figures by "file/all", "file/iv", "file/oov" and, where references have times, "located/..." alike."""
    timed = all(place.start_s is not None for q in queries for place in q.relevant)
    table: dict[str, Figures] = {}
    for level in ("file", "located") if timed else ("file",):
        trials, beta = (float(recordings), FILE_BETA) if level == "file" else (audio_s, LOCATED_BETA)
        for group in ("all", "iv", "oov"):
            chosen = [q for q in queries if group == "all" or q.oov == (group == "oov")]
            if not chosen:
                continue
            judged = [judge(q, answers.get(q.clip, ()), level == "located") for q in chosen]
            mtwv, threshold = maximum_twv(judged, trials, beta)
            table[f"{level}/{group}"] = Figures(
                queries=len(chosen),
                map=float(np.mean([average_precision(j) for j in judged])),
                mrr=float(np.mean([reciprocal_rank(j) for j in judged])),
                p10=float(np.mean([precision_at(j, 10) for j in judged])),
                mtwv=mtwv,
                threshold=threshold,
                beta=beta,
            )
    return table
