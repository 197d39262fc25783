"""What a listener stores: its growing recording, again and again, each time in one short transaction."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from sqlalchemy import Connection, Engine, text

from indexer import database, intake, store
from indexer.intake import NewSegment
from indexer.live.recorder import Recording, recording_at
from indexer.live.sound import State
from indexer.recordings import RecordingInfo
from model.codebook import Codebook
from model.tokenizer import Tokenizer

_LOCK = 7_295_320  # first half of the key of a source's lock
LOCK_WAIT_S, WORK_S = 5.0, 60.0  # that one statement may wait for a lock, and take in all
_NO_SOUND = bytes(32)  # in the place of a content's hash: nothing has been made of the recording yet


class SourceBusy(Exception):
    """Somebody else listens to the source for the same archive."""

    code = "source_busy"


class Switched(Exception):
    """The archive has another tokenizer or codebook by now: what was to be stored is to be made with those."""


@dataclass(frozen=True)
class InForce:
    """What segments of an archive are made with; a new archive has no codebook."""

    archive_id: int
    tokenizer_sha256: str
    codebook_id: int | None


@dataclass(frozen=True)
class Put:
    """A recording as it was stored last: its id, the archive's revision then, its segments, and how many are final."""

    id: int
    revision: int
    segments: int
    final: int


class LiveStore:
    """Stores recordings of one source in one archive; holds a lock on the two as long as its connection lives.

    Everything raises DatabaseError; the next call then begins with another connection.
    """

    def __init__(self, engine: Engine, archive: str, source: str) -> None:
        self._engine = engine
        self._archive = archive
        self._source = source
        self._connection: Connection | None = None

    def open(self, tokenizer: Tokenizer) -> store.ArchiveInfo:
        """The archive, made where it is new, with the lock taken. Raises SourceBusy, TokenizerMismatch, …Invalid."""
        with database.translated(), self._engine.begin() as connection:
            archive = intake.create_archive(connection, self._archive, tokenizer.info, tokenizer.codebook.dim)
        with database.translated():
            self._connected(archive.id)
        return archive

    def close(self) -> None:
        """Let go of the lock."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):  # it is gone already, perhaps
                connection.close()

    def in_force(self, tokenizer: Tokenizer) -> InForce:
        """What the archive is made with; the first codebook of a new one is the tokenizer's own. Raises StoreError."""
        with database.connect(self._engine) as connection, connection.begin():
            _limit(connection)
            archive = store.get_archive(connection, self._archive)
            store.lock_switch(connection, archive.id, "stores")
            found = _locked(connection, archive.id)
            if found.codebook_id is None:
                store.require_tokenizer(archive, tokenizer.info.sha256, tokenizer.info.name)
                own = Codebook(tokenizer.codebook.centroids)
                intake.save_codebook(connection, archive.id, own, "tokenizer", {"archive_s": 0.0})
                found = _locked(connection, archive.id)
            return found

    def codebook(self, made_with: InForce) -> Codebook:
        """The codebook of that. Raises StoreError."""
        assert made_with.codebook_id is not None
        with database.connect(self._engine) as connection:
            return store.load_codebook(connection, made_with.codebook_id)

    def put(
        self,
        recording: Recording,
        state: State,
        duration_s: float,
        final: Sequence[NewSegment],
        rest: Sequence[NewSegment],
        made_with: InForce,
        before: Put | None,
    ) -> Put:
        """Store a recording as it is now; only what is not final `before` is written, where that is still there.

        Raises Switched, StoreError.
        """
        with database.translated():
            try:
                return self._put(recording, state, duration_s, [*final, *rest], len(final), made_with, before)
            except Switched:
                raise
            except Exception:
                self.close()
                raise

    def stale(self, made_with: InForce, but: Iterable[str]) -> list[Recording]:
        """The source's recordings that were made with something else, or with nothing; those named in `but` not."""
        with database.connect(self._engine) as connection:
            rows = connection.execute(
                text("""
                    SELECT name, path, indexed_at FROM recording
                    WHERE archive_id = :archive AND starts_with(name, :source) AND NOT name = ANY(:but)
                    AND (codebook_id <> :codebook OR content_sha256 = :none) ORDER BY name
                """),
                {
                    "archive": made_with.archive_id, "source": f"{self._source}/", "but": list(but),
                    "codebook": made_with.codebook_id, "none": _NO_SOUND,
                },
            ).all()  # fmt: skip
        return [recording_at(Path(os.fsdecode(bytes(row.path))), row.name) for row in rows]

    def _connected(self, archive_id: int) -> Connection:
        """The connection that holds the lock. Raises SourceBusy."""
        if self._connection is None:
            connection = self._engine.connect()
            connection.detach()  # closed at the end, not lent to others: the lock goes with it
            key = {"space": _LOCK, "key": crc32(f"{archive_id}/{self._source}".encode()) - 2**31}
            with connection.begin():
                free = connection.execute(text("SELECT pg_try_advisory_lock(:space, :key)"), key).scalar_one()
            if not free:
                connection.close()
                raise SourceBusy(f"somebody else listens to {self._source} for the archive {self._archive!r}")
            self._connection = connection
        return self._connection

    def _put(
        self,
        recording: Recording,
        state: State,
        duration_s: float,
        segments: list[NewSegment],
        final: int,
        made_with: InForce,
        before: Put | None,
    ) -> Put:
        connection = self._connected(made_with.archive_id)
        with connection.begin():
            _limit(connection)
            archive_id = store.get_archive(connection, self._archive).id
            store.lock_switch(connection, archive_id, "stores")
            # In the order in which all others take these rows.
            old = connection.execute(
                text("SELECT id, revision FROM recording WHERE archive_id = :id AND name = :name FOR UPDATE"),
                {"id": archive_id, "name": recording.name},
            ).one_or_none()
            found = _locked(connection, archive_id)
            if found != made_with or found.codebook_id is None:
                raise Switched
            kept = before.final if before is not None and old is not None and before.revision == old.revision else 0
            number = old.id if old is not None else intake.reserve_ids(connection, 1)[0]
            about = {"source": self._source, "started": recording.started.isoformat(timespec="milliseconds")}
            new = intake.NewRecording(
                number, recording.name, os.fsencode(recording.path), state.bytes, state.mtime_ns, state.sha256,
                duration_s, found.codebook_id, intake.Description(about) if old is None else None,
            )  # fmt: skip
            revision = intake.put_recording(connection, archive_id, new, segments[kept:], kept=kept)
        return Put(number, revision, len(segments), final)


def set_aside(connection: Connection, archive_id: int, codebook_id: int, recordings: Iterable[RecordingInfo]) -> None:
    """Recordings as an archive has them whose listener is still to make something of them: without a segment."""
    for one in recordings:
        number = intake.reserve_ids(connection, 1)[0]
        # Of no bytes: whoever else comes to index the file does not take it for what has been stored.
        nothing = intake.NewRecording(
            number, one.name, os.fsencode(one.path), 0, one.mtime_ns, _NO_SOUND.hex(), one.duration_s, codebook_id
        )
        intake.put_recording(connection, archive_id, nothing, [])


def _limit(connection: Connection) -> None:
    """Wait no longer than that for others, in this transaction: what is heard is kept, and can be stored later."""
    connection.execute(text("SELECT set_config('lock_timeout', :ms, true)"), {"ms": str(round(1e3 * LOCK_WAIT_S))})
    connection.execute(text("SELECT set_config('statement_timeout', :ms, true)"), {"ms": str(round(1e3 * WORK_S))})


def _locked(connection: Connection, archive_id: int) -> InForce:
    """What is in force, which nobody changes until the transaction ends. Raises ArchiveNotFound."""
    row = connection.execute(
        text("""
            SELECT archive.codebook_id, tokenizer.sha256 FROM archive JOIN tokenizer ON tokenizer.id = tokenizer_id
            WHERE archive.id = :id FOR NO KEY UPDATE OF archive
        """),
        {"id": archive_id},
    ).one_or_none()
    if row is None:
        raise store.ArchiveNotFound("the archive has been deleted")
    return InForce(archive_id, row.sha256, row.codebook_id)
