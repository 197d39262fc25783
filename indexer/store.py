"""Archives and their codebooks as they are stored: found, locked, counted, and deleted whole.

Every function takes a SQLAlchemy connection and leaves the transaction to the caller.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import numpy as np
from sqlalchemy import Connection, text

from model.codebook import Codebook

ARCHIVE_NAME_CHARACTERS = 200
# First halves of the keys of an archive's locks; its id is the other.
_LOCK = 7_295_317  # who indexes into it
_SWITCH = 7_295_319  # who changes what its segments are made with


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


_ARCHIVE = """
    SELECT archive.id, archive.name, tokenizer.sha256 AS tokenizer_sha256, tokenizer.name AS tokenizer_name,
        tokenizer.version AS tokenizer_version, archive.codebook_id, codebook.kind AS codebook_kind,
        coalesce(codebook.size, 0) AS codebook_size, archive.recordings, archive.segments,
        archive.audio_s / 3600.0 AS hours, archive.created_at, archive.revision, archive.beside_id
    FROM archive JOIN tokenizer ON tokenizer.id = archive.tokenizer_id
    LEFT JOIN codebook ON codebook.id = archive.codebook_id
"""


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
            SELECT archive_id, sum(length(centroids) + coalesce(length(pq), 0) + coalesce(length(further), 0)) AS bytes
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
        text("""
            SELECT sha256, size, dim, centroids, pq, pq_parts, pq_size, switch_penalty, further
            FROM codebook WHERE id = :id
        """),
        {"id": codebook_id},
    ).one_or_none()
    if row is None:
        raise StoreError(f"there is no codebook {codebook_id}")
    centroids = np.frombuffer(row.centroids, "<f4").astype(np.float32).reshape(row.size, row.dim)
    pq = None
    if row.pq is not None:
        pq = np.frombuffer(row.pq, "<f4").astype(np.float32).reshape(row.pq_parts, row.pq_size, row.dim // row.pq_parts)
    further = None
    if row.further is not None:
        further = np.frombuffer(row.further, "<f4").astype(np.float32).reshape(-1, row.size, row.dim)
    codebook = Codebook(centroids, pq, row.switch_penalty, further)
    if codebook.sha256 != row.sha256:
        raise StoreError(f"codebook {codebook_id} is damaged: its hash is not the one stored with it")
    return codebook


def codebook_bytes(codebook: Codebook) -> dict[str, bytes | None]:
    """The numbers of a codebook as its columns hold them."""
    columns = {"centroids": codebook.centroids, "pq": codebook.pq, "further": codebook.further}
    return {name: None if numbers is None else numbers.astype("<f4").tobytes() for name, numbers in columns.items()}


def makes_codes(connection: Connection, codebook_id: int | None) -> bool:
    """Whether there is a codebook of that id, and something with it to make codes with."""
    asked = text("SELECT pq IS NOT NULL OR further IS NOT NULL FROM codebook WHERE id = :id")
    found = connection.execute(asked, {"id": codebook_id})
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


def lock_switch(connection: Connection, archive_id: int, role: Literal["stores", "switches"]) -> None:
    """Until the transaction ends an archive's codebook and tokenizer stay what they are, or only this one changes them.

    Waits for whoever is at it. It comes before any lock of a row, so that nobody waits for another in a circle.
    """
    function = "pg_advisory_xact_lock_shared" if role == "stores" else "pg_advisory_xact_lock"
    connection.execute(text(f"SELECT {function}(:space, :id)"), {"space": _SWITCH, "id": archive_id})


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
