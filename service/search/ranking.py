"""From places with evidence to hits: ordered, each place once, with the names of their recordings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sqlalchemy import Connection

from indexer.recordings import recordings_by_id
from service.search import alignment
from service.search.answer import Hit, Request
from service.search.calibration import Evidence
from service.search.localindex import View
from service.search.query import Place, Query
from service.search.stretches import Stretches, Times, times_of

SCORE_DIGITS = 6  # of a score as it is told
LEAST_OVERLAP = 0.5  # of the shorter of two hits: more than that and they are one


@dataclass(frozen=True, eq=False)
class Ranking:
    """Places in the order of their scores; the first `limit` that are apart are the answer."""

    places: Stretches
    times: Times
    evidence: Evidence
    order: list[int]


def rank(places: Stretches, evidence: Evidence, view: View, request: Request, none_of: Sequence[Place]) -> Ranking:
    """Order places, and merge those that overlap; places of `none_of` are left out."""
    times, scores = times_of(places, view), evidence.scores
    # Of equals the more similar, then the one that was indexed first.
    order = np.lexsort((times.start_s, times.recording, -places.similarity, -scores))
    chosen: list[int] = []
    taken: dict[int, list[tuple[float, float]]] = {}
    for place in none_of:
        taken.setdefault(place.recording_id, []).append((place.start_s, place.end_s))
    recording, start_s, end_s = times.recording.tolist(), times.start_s.tolist(), times.end_s.tolist()
    for at in order.tolist():
        if len(chosen) == request.limit or not _reaches(scores[at], request.min_score):
            break
        others = taken.setdefault(recording[at], [])
        if not any(_overlap(start_s[at], end_s[at], *other) for other in others):
            others.append((start_s[at], end_s[at]))
            chosen.append(at)
    return Ranking(places, times, evidence, chosen)


def reordered(ranking: Ranking, evidence: Evidence, request: Request) -> Ranking:
    """The same places in the order of other evidence, as many as are wanted."""
    scores = evidence.scores
    best = sorted(ranking.order, key=lambda at: -scores[at])
    order = [at for at in best if _reaches(scores[at], request.min_score)]
    return Ranking(ranking.places, ranking.times, evidence, order[: request.limit])


def _reaches(score: float, least: float) -> bool:
    """Whether a score is enough, as it is told: rounded."""
    return round(float(score), SCORE_DIGITS) >= least


def _overlap(start: float, end: float, other_start: float, other_end: float) -> bool:
    return min(end, other_end) - max(start, other_start) > LEAST_OVERLAP * min(end - start, other_end - other_start)


def named(ranking: Ranking, queries: Sequence[Query], view: View, connection: Connection) -> list[Hit]:
    """Hits with their recordings as they are now; one that has gone or has been replaced meanwhile is left out."""
    places, times, evidence = ranking.places, ranking.times, ranking.evidence
    recordings = recordings_by_id(connection, times.recording[ranking.order].tolist())
    scores = evidence.scores
    hits = []
    for at in ranking.order:
        recording = recordings.get(int(times.recording[at]))
        if recording is None or recording.fingerprint != int(times.fingerprint[at]):
            continue
        said = places.tokens(view, at).ids
        hits.append(
            Hit(
                recording,
                float(times.start_s[at]),
                float(times.end_s[at]),
                float(scores[at]),
                max(alignment.edit_similarity(query.tokens.ids, said) for query in queries),
                float(places.similarity[at]),
                float(evidence.distance[at]),
                float(evidence.similarity[at]),
                None if evidence.deep is None or np.isnan(evidence.deep[at]) else float(evidence.deep[at]),
            )
        )
    return hits
