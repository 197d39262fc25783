"""Recordings: listed, found and described as they are stored, and deleted whole.

Every function takes a SQLAlchemy connection and leaves the transaction to the caller.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, text

from indexer.store import RecordingNotFound, count, storable, storable_json


@dataclass(frozen=True)
class RecordingInfo:
    """A recording; `path` is where the file was when it was indexed, `bytes` and `mtime_ns` what it was like."""

    id: int
    name: str
    duration_s: float
    bytes: int
    sha256: str
    indexed_at: datetime
    path: str
    mtime_ns: int
    archive_id: int
    metadata: dict[str, Any] = field(default_factory=dict)
    external_id: str | None = None

    @property
    def fingerprint(self) -> int:
        """The first 64 bits of the content's hash, as a signed number."""
        return int.from_bytes(bytes.fromhex(self.sha256[:16]), "big", signed=True)


@dataclass(frozen=True)
class Filter:
    """Which recordings are asked for: a part of their name, in any case; what their metadata contain; their own id.

    To contain is what PostgreSQL's `jsonb @> jsonb` says it is.
    """

    contains: str | None = None
    where: Mapping[str, Any] | None = None
    external_id: str | None = None


_RECORDING = """
    SELECT id, name, duration_s, bytes, content_sha256, indexed_at, path, mtime_ns, archive_id, metadata, external_id
    FROM recording
"""


_CONTAINING = "(CAST(:where AS jsonb) IS NULL OR metadata @> CAST(:where AS jsonb))"


def list_recordings(
    connection: Connection,
    archive_id: int,
    limit: int,
    offset: int = 0,
    asked: Filter | None = None,
) -> list[RecordingInfo]:
    """One page of an archive's recordings by name, those that are asked for."""
    asked = asked or Filter()
    part = None if asked.contains is None else storable(asked.contains)
    own = None if asked.external_id is None else storable(asked.external_id)
    rows = connection.execute(
        text(f"""
            {_RECORDING} WHERE archive_id = :archive_id
            AND (CAST(:part AS text) IS NULL OR strpos(lower(name), lower(:part)) > 0)
            AND (CAST(:own AS text) IS NULL OR external_id = :own) AND {_CONTAINING}
            ORDER BY name LIMIT :limit OFFSET :offset
        """),
        {
            "archive_id": archive_id, "part": part, "own": own, "limit": limit, "offset": offset,
            "where": _json(asked.where),
        },
    )  # fmt: skip
    return [_recording(row) for row in rows]


def recordings_where(connection: Connection, archive_id: int, where: Mapping[str, Any]) -> list[int]:
    """Ids of the recordings whose metadata contain `where`, as in `Filter`."""
    rows = connection.execute(
        text(f"SELECT id FROM recording WHERE archive_id = :archive_id AND {_CONTAINING} ORDER BY id"),  # noqa: S608
        {"archive_id": archive_id, "where": _json(where)},
    )
    return list(rows.scalars())


def extent(connection: Connection, ids: Iterable[int]) -> tuple[int, float]:
    """How many of these recordings there are, and their hours."""
    row = connection.execute(
        text("SELECT count(*), coalesce(sum(duration_s), 0) FROM recording WHERE id = ANY(:ids)"), {"ids": list(ids)}
    ).one()
    return row[0], row[1] / 3600.0


def recordings_since(connection: Connection, archive_id: int, after: int, until: int) -> list[int]:
    """Ids of the recordings that came, or were replaced, after one revision of the archive and until another."""
    rows = connection.execute(
        text("""
            SELECT id FROM recording WHERE archive_id = :archive_id AND revision > :after AND revision <= :until
            ORDER BY id
        """),
        {"archive_id": archive_id, "after": after, "until": until},
    )
    return list(rows.scalars())


def recording_ids(connection: Connection, archive_id: int, names: Iterable[str]) -> set[int]:
    """Ids of an archive's recordings by name; a name that it does not have is left out."""
    wanted = sorted({storable(name) for name in names})
    if not wanted:
        return set()
    rows = connection.execute(
        text("SELECT id FROM recording WHERE archive_id = :archive_id AND name = ANY(:names)"),
        {"archive_id": archive_id, "names": wanted},
    )
    return {row.id for row in rows}


def get_recording(connection: Connection, archive_id: int, name_or_id: str | int) -> RecordingInfo:
    """A recording of an archive. Raises RecordingNotFound."""
    column = "id" if isinstance(name_or_id, int) else "name"
    value = name_or_id if isinstance(name_or_id, int) else storable(name_or_id)
    row = connection.execute(
        text(f"{_RECORDING} WHERE archive_id = :archive_id AND {column} = :value"),  # column: one of two
        {"archive_id": archive_id, "value": value},
    ).one_or_none()
    if row is None:
        raise RecordingNotFound(f"there is no recording {name_or_id!r} in the archive")
    return _recording(row)


def recordings_by_id(connection: Connection, ids: Iterable[int]) -> dict[int, RecordingInfo]:
    """Recordings by their ids; an id that is gone is left out."""
    wanted = sorted(set(ids))
    if not wanted:
        return {}
    rows = connection.execute(text(f"{_RECORDING} WHERE id = ANY(:ids)"), {"ids": wanted})
    return {row.id: _recording(row) for row in rows}


def delete_recording(connection: Connection, archive_id: int, name_or_id: str | int) -> None:
    """Delete a recording with all that was made of it, also in what stands beside the archive.

    Raises RecordingNotFound.
    """
    recording = get_recording(connection, archive_id, name_or_id)
    rows = connection.execute(
        text("""
            DELETE FROM recording WHERE id = :id OR (
                name = :name AND archive_id IN (SELECT id FROM archive WHERE beside_id = :archive_id)
            ) RETURNING id, archive_id, segments, duration_s
        """),
        {"id": recording.id, "name": recording.name, "archive_id": archive_id},
    ).all()
    if recording.id not in {row.id for row in rows}:  # somebody else was faster
        raise RecordingNotFound(f"there is no recording {name_or_id!r} in the archive")
    for row in rows:
        count(connection, row.archive_id, recordings=-1, segments=-row.segments, audio_s=-row.duration_s)


def _recording(row: Row[Any]) -> RecordingInfo:
    return RecordingInfo(
        row.id, row.name, row.duration_s, row.bytes, row.content_sha256.hex(), row.indexed_at, os.fsdecode(row.path),
        row.mtime_ns, row.archive_id, row.metadata, row.external_id,
    )  # fmt: skip


def _json(value: Mapping[str, Any] | None) -> str | None:
    """For a JSONB parameter: PostgreSQL has no NUL in texts, and no half of a surrogate pair."""
    return None if value is None else json.dumps(storable_json(dict(value)))
