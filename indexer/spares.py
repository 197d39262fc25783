"""Archives that stand beside another one: what is being made to take its place, and what it was before.

Every function takes a SQLAlchemy connection and leaves the transaction to the caller.
"""

from __future__ import annotations

from typing import Literal

from sqlalchemy import Connection, text

from indexer import store

Role = Literal["~adapting", "~before"]
MADE: Role = "~adapting"  # added to an archive's name: what is being made to take its place
KEPT: Role = "~before"  # what it was before that


def name_of(archive: str, role: Role) -> str:
    """What an archive beside another is called."""
    return archive[: store.ARCHIVE_NAME_CHARACTERS - len(role)] + role


def find(connection: Connection, archive: store.ArchiveInfo, role: Role) -> store.ArchiveInfo | None:
    """What stands beside an archive in that role, if anything does.

    Raises ArchiveNameTaken where the name is that of an archive of its own.
    """
    name = name_of(archive.name, role)
    try:
        found = store.get_archive(connection, name)
    except store.ArchiveNotFound:
        return None
    if found.beside_id != archive.id:
        raise store.ArchiveNameTaken(f"there is an archive of its own named {name!r}: delete it first")
    return found


def put_beside(connection: Connection, spare: store.ArchiveInfo, archive: store.ArchiveInfo) -> None:
    """From here on `spare` is nothing of its own, and goes with the archive."""
    connection.execute(
        text("UPDATE archive SET beside_id = :id WHERE id = :spare"), {"id": archive.id, "spare": spare.id}
    )


def adopt(connection: Connection, archive: store.ArchiveInfo, spare: store.ArchiveInfo) -> None:
    """Give an archive what a spare made of the same recordings: tokenizer, codebook, segments; the spare goes.

    Ids, descriptions, jobs and watches stay, and so do revisions where the content is the same: it is not new. What the
    archive was is kept beside it; whatever else stood there goes. Rows of segments are copied and deleted, never moved:
    where they are spread over servers by recording, none can change its recording. Raises ArchiveNameTaken.
    """
    if spare.name != name_of(archive.name, KEPT):
        find(connection, archive, KEPT)
    ids = {"id": archive.id, "spare": spare.id}
    names = {"made": name_of(archive.name, MADE), "kept": name_of(archive.name, KEPT)}
    connection.execute(text("DELETE FROM archive WHERE beside_id = :id AND id <> :spare"), ids)
    connection.execute(text("UPDATE archive SET name = :made WHERE id = :spare"), ids | names)
    ids["kept"] = connection.execute(
        text("""
            INSERT INTO archive (name, beside_id, tokenizer_id, codebook_id, recordings, segments, audio_s, revision)
            SELECT :kept, id, tokenizer_id, codebook_id, recordings, segments, audio_s, revision
            FROM archive WHERE id = :id RETURNING id
        """),
        ids | names,
    ).scalar_one()
    for statement in (
        "UPDATE codebook SET archive_id = :kept WHERE archive_id = :id",
        "UPDATE codebook SET archive_id = :id WHERE archive_id = :spare",
        """
        INSERT INTO recording (
            archive_id, name, path, bytes, mtime_ns, content_sha256, duration_s, segments, codebook_id, indexed_at
        )
        SELECT :kept, name, path, bytes, mtime_ns, content_sha256, duration_s, segments, codebook_id, indexed_at
        FROM recording WHERE archive_id = :id
        """,
        _COPY.format(source=":id", target=":kept"),
        "DELETE FROM segment USING recording WHERE recording.id = segment.recording_id AND recording.archive_id = :id",
        _COPY.format(source=":spare", target=":id"),
        """
        UPDATE archive SET tokenizer_id = made.tokenizer_id, codebook_id = made.codebook_id, segments = made.segments,
            audio_s = made.audio_s, revision = archive.revision + 1
        FROM archive AS made WHERE archive.id = :id AND made.id = :spare
        """,
        """
        UPDATE recording SET path = made.path, bytes = made.bytes, mtime_ns = made.mtime_ns,
            duration_s = made.duration_s, segments = made.segments, codebook_id = made.codebook_id,
            content_sha256 = made.content_sha256, revision = CASE
                WHEN recording.content_sha256 = made.content_sha256 THEN recording.revision ELSE archive.revision END
        FROM recording AS made, archive WHERE made.archive_id = :spare AND recording.archive_id = :id
        AND recording.name = made.name AND archive.id = :id
        """,
        "UPDATE archive SET codebook_id = NULL WHERE id = :spare",
        "DELETE FROM archive WHERE id = :spare",
        """
        DELETE FROM codebook WHERE archive_id = :id
        AND NOT id IN (SELECT codebook_id FROM archive WHERE id = :id AND codebook_id IS NOT NULL)
        """,
    ):
        connection.execute(text(statement), ids)


_COPY = """
    INSERT INTO segment (recording_id, archive_id, position, start_s, frames, tokens, checksum)
    SELECT target.id, {target}, segment.position, segment.start_s, segment.frames, segment.tokens, segment.checksum
    FROM segment JOIN recording AS source ON source.id = segment.recording_id
    JOIN recording AS target ON target.name = source.name
    WHERE source.archive_id = {source} AND target.archive_id = {target}
"""
