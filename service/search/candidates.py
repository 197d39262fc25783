"""Candidates: the segments that share the most, and the rarest, n-gram keys with the query (PostgreSQL, GIN)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, text

# Each key is looked up by itself, so that the index serves it whatever the others are; rarity is counted from what
# the lookups found: ln(1 + segments / segments with the key).
_LOOKUP = text("""
    WITH query AS (SELECT unnest(CAST(:keys AS smallint[])) AS key),
    found AS (
        SELECT query.key, segment.recording_id, segment.position
        FROM query JOIN segment ON segment.keys @> ARRAY[query.key] AND segment.archive_id = :archive_id
    ),
    rarity AS (
        SELECT key, ln(1 + CAST(:segments AS double precision) / count(*)) AS weight FROM found GROUP BY key
    )
    SELECT found.recording_id, found.position, sum(rarity.weight) AS weight
    FROM found JOIN rarity USING (key)
    GROUP BY found.recording_id, found.position
    ORDER BY weight DESC, found.recording_id, found.position
    LIMIT :depth
""")


@dataclass(frozen=True, order=True)
class SegmentKey:
    """Which segment."""

    recording_id: int
    position: int


@dataclass(frozen=True)
class Candidate:
    """A segment and the summed rarity of the keys it shares with the query."""

    segment: SegmentKey
    weight: float


def lookup(
    connection: Connection, archive_id: int, keys: npt.NDArray[np.int16], segments: int, depth: int
) -> list[Candidate]:
    """At most `depth` candidates for the distinct `keys` of a query, best first; `segments` is the archive's count."""
    values = {
        "archive_id": archive_id,
        "keys": sorted({int(key) for key in keys}),
        "segments": segments,
        "depth": depth,
    }
    return [Candidate(SegmentKey(row[0], row[1]), float(row[2])) for row in connection.execute(_LOOKUP, values)]
