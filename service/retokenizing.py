"""An archive made anew, with another codebook or tokenizer: beside the old one, then put in its place at one stroke."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sqlalchemy import Connection, Engine

from indexer import database, intake, pipeline, sources, spares, store
from indexer.discover import Found, FoundFile, look
from indexer.fitting import CodebookFixed
from indexer.live.sound import is_growing
from indexer.live.store import set_aside
from indexer.recordings import RecordingInfo, delete_recording, list_recordings, recordings_since
from indexer.report import IndexReport, Progressed
from model.tokenizer import Device, Tokenizer

PAGE = 1_000  # recordings read at a time
CATCH_UPS = 5  # times that recordings which came meanwhile are indexed too, before the switch


class RetokenizeFailed(Exception):
    """The archive could not be made anew; the old one is as it was."""

    code = "retokenize_failed"


class NothingKept(Exception):
    """The archive was never made anew, or what it was before is gone."""

    code = "nothing_kept"


@dataclass(frozen=True)
class _Held:
    """An archive into which nobody else may index, its recordings, and the connection that sees to that.

    Listeners add to it all the same: what grows is not among the recordings, and is left to them.
    """

    connection: Connection
    archive: store.ArchiveInfo
    recordings: list[RecordingInfo]


def recordings_of(connection: Connection, archive: store.ArchiveInfo) -> Iterator[RecordingInfo]:
    """All recordings of an archive, by name."""
    offset = 0
    while page := list_recordings(connection, archive.id, PAGE, offset):
        yield from page
        offset += len(page)


def missing(recordings: Sequence[RecordingInfo]) -> list[RecordingInfo]:
    """Those whose file is no longer where it was indexed."""
    return [recording for recording in recordings if _file_of(recording) is None]


def files_of(recordings: Sequence[RecordingInfo]) -> Found:
    """Their files as they are now, under the names that they have; those that are gone are left out."""
    return Found([file for file in map(_file_of, recordings) if file is not None], [])


def retokenize(
    engine: Engine,
    name: str,
    tokenizer: Path,
    *,
    anew: bool = False,
    workers: int = 2,
    device: Device = "cpu",
    progress: Callable[[Progressed], None] | None = None,
) -> IndexReport:
    """Index an archive's files with another tokenizer and put the result in the archive's place.

    Names, ids, whether there are codes, and but for `anew` the kind of codebook stay what they were. Until the
    last moment searches find the old one, and nobody else may index into it; if anything fails that stays, and what
    was done is kept under the name `name~adapting`, where another run goes on. What the archive was is kept beside it
    for `back`. Raises RetokenizeFailed, StoreError, and what `pipeline.index_files` raises.
    """
    made = Tokenizer(tokenizer, threads=1)
    with _held(engine, name) as held:
        connection, old = held.connection, held.archive
        with connection.begin():
            codes = store.makes_codes(connection, old.codebook_id)
            left = spares.find(connection, old, spares.MADE)
            if left is not None and left.tokenizer_sha256 != made.info.sha256:
                store.delete_archive(connection, left.name)
            spare = intake.create_archive(connection, spares.name_of(name, spares.MADE), made.info, made.codebook.dim)
            spares.put_beside(connection, spare, old)
        _require(held.recordings, missing(held.recordings))
        report = pipeline.index_files(
            engine, files_of(held.recordings), spare.name, tokenizer, workers=workers,
            codebook=None if anew else old.codebook_kind or "tokenizer",
            codes=codes, device=device, progress=progress,
        )  # fmt: skip
        _catch_up(engine, held, spare.name, tokenizer, workers, device)
        with connection.begin():
            replace_archive(connection, name, spare.name, since=old.revision)
    return replace(report, archive=name)


def refit(
    engine: Engine,
    name: str,
    tokenizer: Path,
    *,
    workers: int = 2,
    device: Device = "cpu",
    progress: Callable[[Progressed], None] | None = None,
) -> IndexReport:
    """Fit an archive's codebook anew, to all that it holds by now, and index it with that, as `retokenize` does.

    `tokenizer` is the one that it was made with. Raises like `retokenize`, and CodebookFixed.
    """
    info = Tokenizer(tokenizer, threads=1).info
    if info.tokens == "generated":
        raise CodebookFixed(f"the tokenizer {info.name} writes tokens of its own codebook: there is nothing to fit")
    return retokenize(engine, name, tokenizer, anew=True, workers=workers, device=device, progress=progress)


def back(
    engine: Engine,
    name: str,
    tokenizers: Callable[[str], Path],
    *,
    workers: int = 2,
    device: Device = "cpu",
    progress: Callable[[Progressed], None] | None = None,
) -> IndexReport:
    """Give an archive the tokenizer and the codebook back that it had before it was last made anew.

    Recordings that came or changed since are indexed with them first; what it is now is kept in turn. `tokenizers`
    finds the file of a tokenizer by its hash. Raises NothingKept, and like `retokenize`.
    """
    with _held(engine, name) as held:
        connection = held.connection
        with connection.begin():
            kept = spares.find(connection, held.archive, spares.KEPT)
            if kept is None:
                raise NothingKept(f"the archive {name!r} has not been made anew, or what it was before is gone")
            there = {recording.name: recording.sha256 for recording in recordings_of(connection, kept)}
        gone = missing(held.recordings)
        lost = {recording.id for recording in gone}
        _require(held.recordings, [recording for recording in gone if there.get(recording.name) != recording.sha256])
        tokenizer = tokenizers(kept.tokenizer_sha256)
        report = pipeline.index_files(
            engine, files_of([recording for recording in held.recordings if recording.id not in lost]), kept.name,
            tokenizer, workers=workers, device=device, progress=progress, replace=True,
        )  # fmt: skip
        if report.failed:
            first = report.failed[0]
            raise RetokenizeFailed(f"{len(report.failed)} files could not be indexed: {first.name}: {first.message}")
        _catch_up(engine, held, kept.name, tokenizer, workers, device)
        with connection.begin():
            elsewhere = {recording.name for recording in gone}
            replace_archive(connection, name, kept.name, elsewhere=elsewhere, since=held.archive.revision)
    return replace(report, archive=name)


def give_up(connection: Connection, name: str) -> None:
    """Delete what was made of an archive that is not to be made anew after all. Raises ArchiveBusy."""
    with contextlib.suppress(store.ArchiveNameTaken):
        left = spares.find(connection, store.get_archive(connection, name), spares.MADE)
        if left is not None:
            store.delete_archive(connection, left.name)


def replace_archive(
    connection: Connection, name: str, spare: str, elsewhere: set[str] | None = None, since: int | None = None
) -> None:
    """Give the archive `name` what was made for `spare`, which goes, in the caller's transaction.

    What came or grew since its revision `since` and is not among that is left to whoever listens. Raises
    RetokenizeFailed where another recording that the archive has is lacking, or but for those `elsewhere` is from
    another place.
    """
    old, new = store.get_archive(connection, name), store.get_archive(connection, spare)
    store.lock_archive(connection, old, for_transaction=True)  # nobody adds to it from here on
    store.lock_switch(connection, old.id, "switches")  # nor does a listener
    recordings = list(recordings_of(connection, old))
    wanted = {recording.name: recording.path for recording in recordings}
    there = {recording.name: recording for recording in recordings_of(connection, new)}
    lacking = _lacking(wanted, there, elsewhere or set())
    if lacking and since is not None and new.codebook_id is not None:
        grown = set(recordings_since(connection, old.id, since, store.get_archive(connection, name).revision))
        live = [r for r in recordings if r.name in lacking and r.id in grown and Path(r.path).is_file()]
        set_aside(connection, new.id, new.codebook_id, live)
        lacking = [name for name in lacking if name not in {recording.name for recording in live}]
    if lacking:
        raise RetokenizeFailed(
            f"{len(lacking)} of {len(wanted)} recordings could not be indexed again, the first is {lacking[0]!r}: the "
            f"archive stays as it was; what was done is kept as {spare!r}"
        )
    for recording in there.values():
        if recording.name not in wanted:  # deleted meanwhile
            delete_recording(connection, new.id, recording.id)
    spares.adopt(connection, old, store.get_archive(connection, spare))


def _lacking(wanted: Mapping[str, str], there: Mapping[str, RecordingInfo], elsewhere: set[str]) -> list[str]:
    return [
        name for name, path in wanted.items()
        if name not in there or (there[name].path != path and name not in elsewhere)
    ]  # fmt: skip


@contextlib.contextmanager
def _held(engine: Engine, name: str) -> Iterator[_Held]:
    """An archive that nobody else may index into until the connection is closed. Raises StoreError."""
    with database.connect(engine) as connection:
        connection.detach()
        with connection.begin():
            archive = store.get_archive(connection, name)
            store.lock_archive(connection, archive, for_transaction=False)
            recordings = [r for r in recordings_of(connection, archive) if not is_growing(Path(r.path))]
        yield _Held(connection, archive, recordings)


def _catch_up(engine: Engine, held: _Held, spare: str, tokenizer: Path, workers: int, device: Device) -> None:
    """Index what listeners have brought to its end since: little is left to do when the archives are switched."""
    done = {recording.name for recording in held.recordings}
    for _ in range(CATCH_UPS):
        with held.connection.begin():
            came = [r for r in recordings_of(held.connection, held.archive) if r.name not in done]
        came = [r for r in came if Path(r.path).is_file() and not is_growing(Path(r.path))]
        if not came:
            return
        pipeline.index_files(engine, files_of(came), spare, tokenizer, workers=workers, device=device)
        done |= {recording.name for recording in came}


def _file_of(recording: RecordingInfo) -> FoundFile | None:
    found = look(recording.name, sources.place(recording.path))
    return found if isinstance(found, FoundFile) else None


def _require(recordings: Sequence[RecordingInfo], gone: Sequence[RecordingInfo]) -> None:
    """Raises RetokenizeFailed where files are missing that cannot be done without."""
    if gone:
        raise RetokenizeFailed(
            f"{len(gone)} of {len(recordings)} files are missing, the first is {gone[0].name!r}: bring them back, "
            "or delete those recordings from the archive"
        )
