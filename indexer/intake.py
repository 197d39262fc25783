"""What an index run writes: the archive, its codebook, and recordings with their segments by bulk COPY.

Every function takes a SQLAlchemy connection and leaves the transaction to the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any

import psycopg
from sqlalchemy import Connection, text, update
from sqlalchemy.dialects.postgresql import insert

from indexer import schema, store
from indexer.segments import checksum
from model.codebook import Codebook
from model.tokenizer import TokenizerInfo


@dataclass(frozen=True)
class NewSegment:
    """A segment to store: start in seconds, length in frames, token string as bytes."""

    start_s: float
    frames: int
    tokens: bytes


@dataclass(frozen=True)
class Description:
    """What a recording's owner says of it: JSON, and an id of their own, which no other of the archive may have.

    What is not said (metadata None, an id of `...`) stays as it is; an id of None is none from here on.
    """

    metadata: dict[str, Any] | None = None
    external_id: str | EllipsisType | None = ...


@dataclass(frozen=True)
class NewRecording:
    """A recording to store; `path` as the file system has it, `sha256` in hex.

    Without a `description` the one that it has stays.
    """

    id: int
    name: str
    path: bytes
    bytes: int
    mtime_ns: int
    sha256: str
    duration_s: float
    codebook_id: int
    description: Description | None = None


def create_archive(connection: Connection, name: str, tokenizer: TokenizerInfo, dim: int) -> store.ArchiveInfo:
    """The archive of that name, made and tied to the tokenizer where it is new.

    Raises TokenizerMismatch, BadArchiveName.
    """
    store.check_name(name)
    values = {
        "sha256": tokenizer.sha256, "name": tokenizer.name, "version": tokenizer.version,
        "frame_seconds": tokenizer.frame_seconds, "dim": dim,
    }  # fmt: skip
    connection.execute(insert(schema.Tokenizer).values(values).on_conflict_do_nothing())
    connection.execute(
        text("""
            INSERT INTO archive (name, tokenizer_id) SELECT :name, id FROM tokenizer WHERE sha256 = :sha256
            ON CONFLICT (name) DO NOTHING
        """),
        {"name": store.storable(name), "sha256": tokenizer.sha256},
    )
    archive = store.get_archive(connection, name)
    store.require_tokenizer(archive, tokenizer.sha256, tokenizer.name)
    return archive


def save_codebook(
    connection: Connection, archive_id: int, codebook: Codebook, kind: str, parameters: dict[str, Any]
) -> int:
    """Store a codebook and put it in force; its id."""
    parts, size = (0, 0) if codebook.pq is None else codebook.pq.shape[:2]
    values = {
        "archive_id": archive_id, "kind": kind, "sha256": codebook.sha256, "size": codebook.size, "dim": codebook.dim,
        "pq_parts": parts, "pq_size": size, "switch_penalty": codebook.switch_penalty, "parameters": parameters,
        **store.codebook_bytes(codebook),
    }  # fmt: skip
    statement = insert(schema.Codebook).values(values)
    statement = statement.on_conflict_do_update(
        index_elements=["archive_id", "sha256"], set_={"kind": kind, "parameters": parameters}
    )
    codebook_id = connection.execute(statement.returning(schema.Codebook.id)).scalar_one()
    connection.execute(
        text("UPDATE archive SET codebook_id = :codebook_id WHERE id = :id"),
        {"codebook_id": codebook_id, "id": archive_id},
    )
    return codebook_id


def reserve_ids(connection: Connection, count: int) -> list[int]:
    """Ids for so many new recordings, ascending: given out in the order of the files, however the work is shared."""
    rows = connection.execute(
        text("SELECT nextval(pg_get_serial_sequence('recording', 'id')) FROM generate_series(1, :count)"),
        {"count": count},
    )
    return sorted(rows.scalars())


def put_recording(
    connection: Connection, archive_id: int, recording: NewRecording, segments: Sequence[NewSegment], *, kept: int = 0
) -> int:
    """Store a recording and its segments; where there is one of that name, it is replaced and keeps its id.

    The first `kept` segments that it has stay as they are, and `segments` follow them. The archive's revision that this
    brought. Raises ExternalIdTaken.
    """
    old = connection.execute(
        text(
            "SELECT id, segments, duration_s FROM recording WHERE archive_id = :archive_id AND name = :name FOR UPDATE"
        ),
        {"archive_id": archive_id, "name": recording.name},
    ).one_or_none()
    values: dict[str, Any] = {
        "id": recording.id if old is None else old.id, "archive_id": archive_id, "name": recording.name,
        "path": recording.path, "bytes": recording.bytes, "mtime_ns": recording.mtime_ns,
        "content_sha256": bytes.fromhex(recording.sha256), "duration_s": recording.duration_s,
        "segments": kept + len(segments), "codebook_id": recording.codebook_id,
    }  # fmt: skip
    # First: the archive's row is locked until the end, so that revisions rise in the order in which they are seen.
    values["revision"] = store.count(
        connection, archive_id, recordings=int(old is None),
        segments=kept + len(segments) - (0 if old is None else old.segments),
        audio_s=recording.duration_s - (0.0 if old is None else old.duration_s),
    )  # fmt: skip
    if old is None:
        connection.execute(_INSERT_RECORDING, values)
    else:
        connection.execute(
            text("DELETE FROM segment WHERE recording_id = :id AND position >= :kept"), {"id": old.id, "kept": kept}
        )
        connection.execute(_UPDATE_RECORDING, values)
    _copy_segments(connection, archive_id, values["id"], segments, kept)
    if recording.description is not None:
        describe(connection, archive_id, values["id"], recording.description)
    return int(values["revision"])


def describe(connection: Connection, archive_id: int, recording_id: int, description: Description) -> None:
    """Say of a recording what its owner says. Raises ExternalIdTaken."""
    values: dict[Any, Any] = {}
    if description.metadata is not None:
        values[schema.Recording.about] = store.storable_json(description.metadata)
    if description.external_id is not ...:
        values[schema.Recording.external_id] = _free_id(connection, archive_id, recording_id, description.external_id)
    if values:
        connection.execute(update(schema.Recording).where(schema.Recording.id == recording_id).values(values))


def _free_id(connection: Connection, archive_id: int, recording_id: int, wanted: str | None) -> str | None:
    """An id of the owner's as it is stored. Raises ExternalIdTaken where another recording has it."""
    if wanted is None:
        return None
    external_id = store.storable(wanted)
    taken = connection.execute(
        text("SELECT name FROM recording WHERE archive_id = :archive_id AND external_id = :own AND id <> :id"),
        {"archive_id": archive_id, "own": external_id, "id": recording_id},
    ).scalar_one_or_none()
    if taken is not None:
        raise store.ExternalIdTaken(f"the recording {taken!r} has the id {external_id!r} already")
    return external_id


_INSERT_RECORDING = text("""
    INSERT INTO recording
        (id, archive_id, name, path, bytes, mtime_ns, content_sha256, duration_s, segments, codebook_id, revision)
    VALUES
        (:id, :archive_id, :name, :path, :bytes, :mtime_ns, :content_sha256, :duration_s, :segments, :codebook_id,
        :revision)
""")
_UPDATE_RECORDING = text("""
    UPDATE recording SET path = :path, bytes = :bytes, mtime_ns = :mtime_ns, content_sha256 = :content_sha256,
        duration_s = :duration_s, segments = :segments, codebook_id = :codebook_id, revision = :revision,
        indexed_at = now() WHERE id = :id
""")


def _copy_segments(
    connection: Connection, archive_id: int, recording_id: int, segments: Sequence[NewSegment], first: int
) -> None:
    driver = connection.connection.dbapi_connection
    assert isinstance(driver, psycopg.Connection)
    columns = "archive_id, recording_id, position, start_s, frames, tokens, checksum"
    with (
        driver.cursor() as cursor,
        cursor.copy(f"COPY segment ({columns}) FROM STDIN (FORMAT BINARY)") as copy,
    ):
        copy.set_types(["int4", "int8", "int4", "float8", "int4", "bytea", "int4"])
        for position, segment in enumerate(segments, first):
            copy.write_row((
                archive_id, recording_id, position, segment.start_s, segment.frames, segment.tokens,
                checksum(segment.tokens),
            ))  # fmt: skip


def touch_recording(
    connection: Connection, recording_id: int, name: str, path: bytes, size: int, mtime_ns: int
) -> None:
    """Note where a recording whose content is the same lies, and its name, also in what stands beside the archive."""
    connection.execute(
        text("""
            UPDATE recording SET name = :name FROM recording AS own JOIN archive ON archive.beside_id = own.archive_id
            WHERE own.id = :id AND own.name <> :name AND recording.archive_id = archive.id AND recording.name = own.name
        """),
        {"name": name, "id": recording_id},
    )
    connection.execute(
        text("UPDATE recording SET name = :name, path = :path, bytes = :bytes, mtime_ns = :mtime_ns WHERE id = :id"),
        {"name": name, "path": path, "bytes": size, "mtime_ns": mtime_ns, "id": recording_id},
    )
