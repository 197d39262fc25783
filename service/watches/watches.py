"""Watches as rows: made, listed, deleted, with the places that they have found."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from sqlalchemy import Connection, Row, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.sql import bindparam

from indexer import store
from model.audio import SAMPLE_RATE
from service import sound
from service.clips import Clip, read_clip
from service.errors import WatchNameTaken, WatchNotFound
from service.search.answer import Hit

SECRET_BYTES = 32

_WATCH = """
    SELECT watch.id, watch.name, archive.name AS archive, watch.archive_id, watch.min_score, watch.webhook,
        watch.seen_revision, watch.created_at, (SELECT count(*) FROM watch_hit WHERE watch_id = watch.id) AS hits
    FROM watch JOIN archive ON archive.id = watch.archive_id
"""


@dataclass(frozen=True)
class WatchInfo:
    """A watch without its examples; `hits` counts what it has found in recordings that are there."""

    id: int
    name: str
    archive: str
    archive_id: int
    min_score: float
    webhook: str | None
    seen_revision: int
    created_at: datetime
    hits: int


@dataclass(frozen=True)
class WatchHit:
    """A place that a watch has found, in seconds, and when."""

    id: int
    recording_id: int
    start_s: float
    end_s: float
    score: float
    found_at: datetime


@dataclass(frozen=True)
class Delivery:
    """What was, or is to be, told to a webhook: how often that was tried, and what was wrong last time."""

    id: int
    attempts: int
    problem: str | None
    created_at: datetime
    next_at: datetime
    delivered_at: datetime | None
    failed_at: datetime | None


def add(
    connection: Connection,
    archive: store.ArchiveInfo,
    name: str,
    examples: Sequence[Clip],
    min_score: float,
    webhook: str | None,
) -> tuple[int, bytes | None]:
    """Store a query; its id, and with a webhook the secret that signs what it is told. Raises WatchNameTaken.

    The clips are kept as sound, so that the watch outlives a change of tokenizer or codebook. What the archive has
    already is not searched.
    """
    secret = secrets.token_bytes(SECRET_BYTES) if webhook is not None else None
    statement = text("""
        INSERT INTO watch (archive_id, name, examples, stretches, min_score, webhook, secret, seen_revision)
        SELECT :archive_id, :name, :examples, :stretches, :min_score, :webhook, :secret, revision
        FROM archive WHERE id = :archive_id ON CONFLICT (archive_id, name) DO NOTHING RETURNING id
    """).bindparams(bindparam("stretches", type_=JSONB))
    kept = [np.concatenate([clip.before, clip.samples, clip.after]) for clip in examples]
    stretches = [
        (len(clip.before) / SAMPLE_RATE, (len(clip.before) + len(clip.samples)) / SAMPLE_RATE) for clip in examples
    ]
    values = {
        "archive_id": archive.id, "name": store.storable(name), "examples": [sound.wav(samples) for samples in kept],
        "stretches": stretches, "min_score": min_score, "webhook": webhook, "secret": secret,
    }  # fmt: skip
    number = connection.execute(statement, values).scalar_one_or_none()
    if number is None:
        raise WatchNameTaken(f"the archive {archive.name!r} has a watch named {name!r} already", "name")
    return number, secret


def get(connection: Connection, watch_id: int) -> WatchInfo:
    """One watch. Raises WatchNotFound."""
    row = connection.execute(text(_WATCH + "WHERE watch.id = :id"), {"id": watch_id}).one_or_none()
    if row is None:
        raise WatchNotFound(f"there is no watch {watch_id}")
    return _info(row)


def list_watches(connection: Connection, archive_id: int | None) -> list[WatchInfo]:
    """All watches of an archive, or of all, by age."""
    rows = connection.execute(
        text(f"{_WATCH} WHERE CAST(:id AS integer) IS NULL OR watch.archive_id = :id ORDER BY watch.id"),
        {"id": archive_id},
    )
    return [_info(row) for row in rows]


def delete(connection: Connection, watch_id: int) -> None:
    """Delete a watch with what it has found. Raises WatchNotFound."""
    if connection.execute(text("DELETE FROM watch WHERE id = :id"), {"id": watch_id}).rowcount == 0:
        raise WatchNotFound(f"there is no watch {watch_id}")


def examples_of(connection: Connection, watch_id: int) -> list[Clip]:
    """The clips of a watch."""
    row = connection.execute(text("SELECT examples, stretches FROM watch WHERE id = :id"), {"id": watch_id}).one()
    longest_s = max(end_s for _, end_s in row.stretches) + 1.0
    return [
        read_clip(bytes(example), longest_s, start_s, end_s)
        for example, (start_s, end_s) in zip(row.examples, row.stretches, strict=True)
    ]


def put_hits(
    connection: Connection, watch: WatchInfo, searched: Sequence[int], revision: int, hits: Sequence[Hit]
) -> list[Hit]:
    """Store what a watch has found in the recordings `searched`, as they were at a revision; the hits that are new.

    A place that it has found before is no new hit, however often its recording is searched while that grows. It goes
    where nothing like it is found there any more: for that, `hits` are also of scores below the watch's.
    """
    rows = connection.execute(
        text("""
            SELECT watch_hit.id, recording_id, start_s, end_s,
                recording.revision <= :revision AND recording.segments > 0 AS is_searched
            FROM watch_hit JOIN recording ON recording.id = recording_id
            WHERE watch_id = :watch AND recording_id = ANY(:searched)
        """),
        {"watch": watch.id, "searched": list(searched), "revision": revision},
    ).all()
    gone = {row.id for row in rows if row.is_searched}
    again: dict[int, dict[str, Any]] = {}
    new: list[Hit] = []
    for hit in hits:  # the best first
        same = [row.id for row in rows if row.recording_id == hit.recording.id and _is_same(row, hit)]
        gone -= set(same)
        if hit.score < watch.min_score:
            continue
        if not same:
            new.append(hit)
        for number in same:
            again.setdefault(number, {"id": number, "start": hit.start_s, "end": hit.end_s, "score": hit.score})
    connection.execute(text("DELETE FROM watch_hit WHERE id = ANY(:gone)"), {"gone": list(gone)})
    if again:
        connection.execute(
            text("UPDATE watch_hit SET start_s = :start, end_s = :end, score = :score WHERE id = :id"),
            list(again.values()),
        )
    if new:
        connection.execute(
            text("""
                INSERT INTO watch_hit (watch_id, recording_id, start_s, end_s, score)
                VALUES (:watch, :recording, :start, :end, :score)
            """),
            [
                {"watch": watch.id, "recording": h.recording.id, "start": h.start_s, "end": h.end_s, "score": h.score}
                for h in new
            ],
        )
    return new


def _is_same(row: Row[Any], hit: Hit) -> bool:
    """Whether two places are one: they share half of the shorter."""
    shared_s = min(row.end_s, hit.end_s) - max(row.start_s, hit.start_s)
    return bool(shared_s >= 0.5 * min(row.end_s - row.start_s, hit.end_s - hit.start_s))


def hits_of(connection: Connection, watch_id: int, limit: int, before: int | None = None) -> list[WatchHit]:
    """The latest places that a watch has found, with ids below `before`."""
    rows = connection.execute(
        text("""
            SELECT id, recording_id, start_s, end_s, score, found_at FROM watch_hit
            WHERE watch_id = :id AND (CAST(:before AS bigint) IS NULL OR id < :before) ORDER BY id DESC LIMIT :limit
        """),
        {"id": watch_id, "before": before, "limit": limit},
    )
    return [WatchHit(**row._mapping) for row in rows]


def add_delivery(connection: Connection, watch_id: int, body: bytes) -> None:
    """A watch's webhook is to be told this."""
    connection.execute(
        text("INSERT INTO delivery (watch_id, body) VALUES (:id, :body)"), {"id": watch_id, "body": body}
    )


def has_seen(connection: Connection, watch_id: int, revision: int) -> None:
    """A watch has searched all that its archive had at that revision."""
    connection.execute(
        text("UPDATE watch SET seen_revision = :revision WHERE id = :id"), {"revision": revision, "id": watch_id}
    )


def deliveries_of(connection: Connection, watch_id: int, limit: int) -> list[Delivery]:
    """The latest deliveries of a watch."""
    rows = connection.execute(
        text("""
            SELECT id, attempts, problem, created_at, next_at, delivered_at, failed_at FROM delivery
            WHERE watch_id = :id ORDER BY id DESC LIMIT :limit
        """),
        {"id": watch_id, "limit": limit},
    )
    return [Delivery(**row._mapping) for row in rows]


def _info(row: Row[Any]) -> WatchInfo:
    return WatchInfo(**row._mapping)
