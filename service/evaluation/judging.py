"""Which hits of an answer are right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from service.evaluation.tasks import TaskQuery

TOLERANCE_S = 0.5  # a located hit counts if its midpoint lies this near to a reference


@dataclass(frozen=True)
class Ranked:
    """One hit of an answer."""

    name: str
    start_s: float
    end_s: float
    score: float


@dataclass(frozen=True)
class Judged:
    """An answer against its references: (score, right) of each hit that counts, and how many were to be found."""

    hits: tuple[tuple[float, bool], ...]
    relevant: int


def judge(query: TaskQuery, hits: Sequence[Ranked], located: bool) -> Judged:
    """Hits that count, best first, as `verdicts` says. `hits` come best first."""
    told = verdicts(query, hits, located)
    judged = tuple((hit.score, right) for hit, right in zip(hits, told, strict=True) if right is not None)
    return Judged(judged, len(query.relevant) if located else len({place.name for place in query.relevant}))


def verdicts(query: TaskQuery, hits: Sequence[Ranked], located: bool) -> list[bool | None]:
    """For each hit whether it is right, or None where it does not count. `hits` come best first.

    By file, a recording counts once, at its best hit; located, each reference counts once, at its best hit, and what
    else is at that reference does not count. Nor do hits in excluded recordings, the query's own among them.
    """
    wanted = {place.name for place in query.relevant}
    told: list[bool | None] = []
    seen: set[str] = set()
    taken: set[int] = set()
    for hit in hits:
        if hit.name in query.exclude:
            told.append(None)
        elif located:
            there = _references(query, hit)
            free = [number for number in there if number not in taken]
            taken.update(free[:1])
            told.append(True if free else None if there else False)
        else:
            told.append(None if hit.name in seen else hit.name in wanted)
            seen.add(hit.name)
    return told


def _references(query: TaskQuery, hit: Ranked) -> list[int]:
    """Numbers of the references that the hit is at, the one with the nearest midpoint first."""
    middle_s = (hit.start_s + hit.end_s) / 2
    near: list[tuple[float, int]] = []
    for number, place in enumerate(query.relevant):
        if place.name != hit.name or place.start_s is None or place.end_s is None:
            continue
        if place.start_s - TOLERANCE_S <= middle_s <= place.end_s + TOLERANCE_S:
            near.append((abs(middle_s - (place.start_s + place.end_s) / 2), number))
    return [number for _, number in sorted(near)]
