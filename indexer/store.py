"""What is stored: archives and their codebooks, recordings and segments; read fast, and deleted whole.

Every function takes a SQLAlchemy connection and leaves the transaction to the caller.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import numpy as np
from sqlalchemy import Connection, Row, text

from indexer.livelock import lock_switch
from model.codebook import Codebook

ARCHIVE_NAME_CHARACTERS = 200
_LOCK = 7_295_317  # first half of the key of an archive's lock; its id is the other


class StoreError(Exception):
    """What was asked for is not there, or does not fit.

    StoreError
    ├── ArchiveNotFound    no archive of that name
    ├── BadArchiveName     empty, or too long
    ├── ArchiveNameTaken   there is another archive of that name
    ├── ExternalIdTaken    another recording has the id that its owner wants for this one
    ├── RecordingNotFound  no recording of that name in the archive
    ├── ArchiveBusy        another process is indexing into it
    ├── SegmentDamaged     a token string is not the one that was stored
    └── TokenizerMismatch  the archive was made with another tokenizer
    """

    code = "store_error"


class ArchiveNotFound(StoreError):
    """No archive of that name."""

    code = "archive_not_found"


class BadArchiveName(StoreError):
    """A name that an archive cannot have."""

    code = "archive_name_invalid"


class ArchiveNameTaken(StoreError):
    """There is another archive of that name."""

    code = "archive_name_taken"


class ExternalIdTaken(StoreError):
    """Another recording of the archive has that id of its owner's."""

    code = "external_id_taken"


class RecordingNotFound(StoreError):
    """No such recording in the archive."""

    code = "recording_not_found"


class ArchiveBusy(StoreError):
    """Another process is indexing into the archive."""

    code = "archive_busy"


class SegmentDamaged(StoreError):
    """A token string is not the one that was stored."""

    code = "segment_damaged"


class TokenizerMismatch(StoreError):
    """The archive was made with another tokenizer."""

    code = "tokenizer_mismatch"


@dataclass(frozen=True)
class ArchiveInfo:
    """An archive with what is in force. `bytes` on disk is counted by `list_archives` only, the codebook included.

    `beside_id` is the archive that this one is to replace, or was replaced by: then it is none of its own.
    """

    id: int
    name: str
    tokenizer_sha256: str
    tokenizer_name: str
    tokenizer_version: str
    codebook_id: int | None
    codebook_kind: Literal["archive", "tokenizer"] | None
    codebook_size: int
    recordings: int
    segments: int
    hours: float
    created_at: datetime
    revision: int
    beside_id: int | None = None
    bytes: int = 0


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


@dataclass(frozen=True)
class SegmentRow:
    """Which segment, its token string as bytes, and what their `checksum` was when they were stored."""

    recording_id: int
    position: int
    tokens: bytes
    checksum: int

    @property
    def intact(self) -> bool:
        """Whether the token string is the one that was stored."""
        return checksum(self.tokens) == self.checksum


@dataclass(frozen=True)
class MarkedSegment(SegmentRow):
    """A segment with the fingerprint of its recording."""

    fingerprint: int


_ARCHIVE = """
    SELECT archive.id, archive.name, tokenizer.sha256 AS tokenizer_sha256, tokenizer.name AS tokenizer_name,
        tokenizer.version AS tokenizer_version, archive.codebook_id, codebook.kind AS codebook_kind,
        coalesce(codebook.size, 0) AS codebook_size, archive.recordings, archive.segments,
        archive.audio_s / 3600.0 AS hours, archive.created_at, archive.revision, archive.beside_id
    FROM archive JOIN tokenizer ON tokenizer.id = archive.tokenizer_id
    LEFT JOIN codebook ON codebook.id = archive.codebook_id
"""
# The first 64 bits of the content's hash: `RecordingInfo.fingerprint`.
_FINGERPRINT = "CAST(CAST('x' || encode(substring(content_sha256 FOR 8), 'hex') AS bit(64)) AS bigint)"
_RECORDING = """
    SELECT id, name, duration_s, bytes, content_sha256, indexed_at, path, mtime_ns, archive_id, metadata, external_id
    FROM recording
"""
_CONTAINING = "(CAST(:where AS jsonb) IS NULL OR metadata @> CAST(:where AS jsonb))"


def get_archive(connection: Connection, name: str) -> ArchiveInfo:
    """The archive of that name. Raises ArchiveNotFound."""
    row = connection.execute(text(_ARCHIVE + "WHERE archive.name = :name"), {"name": storable(name)}).one_or_none()
    if row is None:
        raise ArchiveNotFound(f"there is no archive named {name!r}")
    return ArchiveInfo(**row._mapping)


def list_archives(connection: Connection) -> list[ArchiveInfo]:
    """All archives by name, with their share of the bytes on disk."""
    # The tables are shared: each archive answers for its part of the rows, and for its own codebooks.
    rows = connection.execute(text(f"""
        WITH listed AS ({_ARCHIVE}),
        totals AS (
            SELECT pg_total_relation_size('segment') / greatest(sum(segments), 1) AS a_segment,
                pg_total_relation_size('recording') / greatest(sum(recordings), 1) AS a_recording FROM archive
        ),
        books AS (
            SELECT archive_id, sum(length(centroids) + coalesce(length(pq), 0)) AS bytes
            FROM codebook GROUP BY archive_id
        )
        SELECT listed.*,
            CAST(a_segment * segments + a_recording * recordings + coalesce(books.bytes, 0) AS bigint) AS bytes
        FROM totals, listed LEFT JOIN books ON books.archive_id = listed.id ORDER BY listed.name
    """))  # fmt: skip # noqa: S608 (no value from outside is in it)
    return [ArchiveInfo(**row._mapping) for row in rows]


def require_tokenizer(archive: ArchiveInfo, sha256: str, name: str = "the one given") -> None:
    """Raises TokenizerMismatch, which names both, where the archive was made with another tokenizer."""
    if archive.tokenizer_sha256 != sha256:
        raise TokenizerMismatch(
            f"the archive {archive.name!r} was made with the tokenizer {archive.tokenizer_name} "
            f"({archive.tokenizer_sha256[:12]}), not with {name} ({sha256[:12]})"
        )


def load_codebook(connection: Connection, codebook_id: int) -> Codebook:
    """The codebook of that id, its hash checked. Raises StoreError."""
    row = connection.execute(
        text("SELECT sha256, size, dim, centroids, pq, pq_parts, pq_size, switch_penalty FROM codebook WHERE id = :id"),
        {"id": codebook_id},
    ).one_or_none()
    if row is None:
        raise StoreError(f"there is no codebook {codebook_id}")
    centroids = np.frombuffer(row.centroids, "<f4").astype(np.float32).reshape(row.size, row.dim)
    pq = None
    if row.pq is not None:
        pq = np.frombuffer(row.pq, "<f4").astype(np.float32).reshape(row.pq_parts, row.pq_size, row.dim // row.pq_parts)
    codebook = Codebook(centroids, pq, row.switch_penalty)
    if codebook.sha256 != row.sha256:
        raise StoreError(f"codebook {codebook_id} is damaged: its hash is not the one stored with it")
    return codebook


def has_quantiser(connection: Connection, codebook_id: int | None) -> bool:
    """Whether there is a codebook of that id, and a product quantiser with it."""
    found = connection.execute(text("SELECT pq IS NOT NULL FROM codebook WHERE id = :id"), {"id": codebook_id})
    return bool(found.scalar_one_or_none())


def codebook_parameters(connection: Connection, codebook_id: int) -> dict[str, Any]:
    """How a codebook came about, as the fit wrote it down."""
    row = connection.execute(text("SELECT parameters FROM codebook WHERE id = :id"), {"id": codebook_id}).one_or_none()
    return {} if row is None else row.parameters


def count(connection: Connection, archive_id: int, *, recordings: int, segments: int, audio_s: float) -> int:
    """Add to an archive's counters, and to its revision, since its recordings have changed: what that is now."""
    revision: int = connection.execute(
        text("""
            UPDATE archive SET recordings = recordings + :recordings, segments = segments + :segments,
                audio_s = greatest(0, audio_s + :audio_s), revision = revision + 1 WHERE id = :id RETURNING revision
        """),
        {"recordings": recordings, "segments": segments, "audio_s": audio_s, "id": archive_id},
    ).scalar_one()
    return revision


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


def delete_archive(connection: Connection, name: str) -> None:
    """Delete an archive with all its recordings and codebooks. Raises ArchiveNotFound, ArchiveBusy."""
    archive = get_archive(connection, name)
    lock_archive(connection, archive, for_transaction=True)
    lock_switch(connection, archive.id, "switches")
    connection.execute(text("DELETE FROM archive WHERE id = :id"), {"id": archive.id})


def check_name(name: str) -> None:
    """Raises BadArchiveName where an archive cannot have that name."""
    if not name.strip() or len(name) > ARCHIVE_NAME_CHARACTERS:
        raise BadArchiveName(f"an archive's name has 1 to {ARCHIVE_NAME_CHARACTERS} characters, not {len(name)}")


def lock_archive(connection: Connection, archive: ArchiveInfo, *, for_transaction: bool) -> None:
    """Keep others from indexing into the archive, or from deleting it, until the transaction or the session ends.

    Raises ArchiveBusy.
    """
    function = "pg_try_advisory_xact_lock" if for_transaction else "pg_try_advisory_lock"
    free = connection.execute(text(f"SELECT {function}(:space, :id)"), {"space": _LOCK, "id": archive.id}).scalar_one()
    if not free:
        raise ArchiveBusy(f"another process is indexing into the archive {archive.name!r}")


def segments_between(
    connection: Connection, recording_id: int, start_s: float, end_s: float, frame_s: float
) -> list[SegmentRow]:
    """The segments of a recording that have something of a stretch, in their order. Raises SegmentDamaged."""
    rows = connection.execute(
        text("""
            SELECT recording_id, position, tokens, checksum FROM segment
            WHERE recording_id = :id AND start_s < :end_s
            AND start_s + frames * CAST(:frame_s AS double precision) > :start_s
            ORDER BY position
        """),
        {"id": recording_id, "start_s": start_s, "end_s": end_s, "frame_s": frame_s},
    )
    found = [SegmentRow(*row) for row in rows]
    for row in found:
        if not row.intact:
            raise SegmentDamaged(f"segment {row.position} of recording {recording_id} is damaged: run `sayagain check`")
    return found


def fingerprints(connection: Connection, archive_id: int, codebook_id: int) -> tuple[int, dict[int, int]]:
    """An archive's revision, and the fingerprint of each recording with segments that this codebook made, by id."""
    rows = connection.execute(
        text(f"""
            SELECT archive.revision, recording.id, {_FINGERPRINT} FROM archive LEFT JOIN recording
            ON recording.archive_id = archive.id AND recording.codebook_id = :codebook_id
            AND recording.segments > 0 WHERE archive.id = :archive_id
        """),  # noqa: S608 (no value from outside is in it)
        {"archive_id": archive_id, "codebook_id": codebook_id},
    ).all()
    return (rows[0][0] if rows else 0), {row[1]: row[2] for row in rows if row[1] is not None}


def segments_of(connection: Connection, recordings: Sequence[int], codebook_id: int) -> list[MarkedSegment]:
    """All segments of recordings, each whole and as it is now; without those that are gone or of another codebook."""
    rows = connection.execute(
        text(f"""
            SELECT segment.recording_id, segment.position, segment.tokens, segment.checksum, {_FINGERPRINT}
            FROM segment JOIN recording ON recording.id = segment.recording_id
            WHERE segment.recording_id = ANY(:recordings) AND recording.codebook_id = :codebook_id
            ORDER BY segment.recording_id, segment.position
        """),  # noqa: S608 (no value from outside is in it)
        {"recordings": list(recordings), "codebook_id": codebook_id},
    )
    return [MarkedSegment(*row) for row in rows]


def _recording(row: Row[Any]) -> RecordingInfo:
    return RecordingInfo(
        row.id, row.name, row.duration_s, row.bytes, row.content_sha256.hex(), row.indexed_at, os.fsdecode(row.path),
        row.mtime_ns, row.archive_id, row.metadata, row.external_id,
    )  # fmt: skip


def checksum(tokens: bytes) -> int:
    """What is stored beside a token string: the first 32 bits of its SHA-256, as a signed number."""
    return int.from_bytes(hashlib.sha256(tokens).digest()[:4], "big", signed=True)


def _json(value: Mapping[str, Any] | None) -> str | None:
    """For a JSONB parameter: PostgreSQL has no NUL in texts, and no half of a surrogate pair."""
    return None if value is None else json.dumps(storable_json(dict(value)))


def storable_json(value: Any) -> Any:
    """A JSON value whose texts, keys too, are such as PostgreSQL takes."""
    if isinstance(value, dict):
        return {storable(key): storable_json(part) for key, part in value.items()}
    if isinstance(value, list):
        return [storable_json(part) for part in value]
    return storable(value) if isinstance(value, str) else value


def storable(value: str) -> str:
    """`value` as text that PostgreSQL takes, which has no NUL and no lone surrogates."""
    return value.replace("\0", "\ufffd").encode("utf-8", "backslashreplace").decode()
