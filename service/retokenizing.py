"""An archive made anew with another tokenizer: indexed beside the old one, then put in its place at one stroke."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sqlalchemy import Connection, Engine

from indexer import database, intake, pipeline, store
from indexer.discover import Found, FoundFile
from indexer.report import IndexReport, Progressed
from model.tokenizer import Device, Tokenizer

SUFFIX = "~adapting"  # of the archive's name while it is being made anew
PAGE = 1_000  # recordings read at a time


class RetokenizeFailed(Exception):
    """The archive could not be made anew; the old one is as it was."""

    code = "retokenize_failed"


def recordings_of(connection: Connection, archive: store.ArchiveInfo) -> Iterator[store.RecordingInfo]:
    """All recordings of an archive, by name."""
    offset = 0
    while page := store.list_recordings(connection, archive.id, PAGE, offset):
        yield from page
        offset += len(page)


def missing(recordings: list[store.RecordingInfo]) -> list[store.RecordingInfo]:
    """Those whose file is no longer where it was indexed."""
    return [recording for recording in recordings if not Path(recording.path).is_file()]


def files_of(recordings: Sequence[store.RecordingInfo]) -> Found:
    """Their files as they are now, under the names that they have."""
    files = []
    for recording in recordings:
        about = os.stat(recording.path)
        files.append(FoundFile(recording.name, Path(recording.path), about.st_size, about.st_mtime_ns))
    return Found(files, [])


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

    Names, ids, whether there is a quantiser, and but for `anew` the kind of codebook stay what they were. Until the
    last moment searches find the old one, and nobody else may index into it; if anything fails that stays, and what
    was done is kept under the name `name~adapting`, where another run goes on. Raises RetokenizeFailed, StoreError, and
    what `pipeline.index_files` raises.
    """
    with database.connect(engine) as connection:
        connection.detach()
        with connection.begin():
            old = store.get_archive(connection, name)
            store.lock_archive(connection, old, for_transaction=False)  # until the connection is closed
            recordings = list(recordings_of(connection, old))
            codes = old.codebook_id is not None and store.load_codebook(connection, old.codebook_id).pq is not None
            _clear(connection, spare := spare_name(name), Tokenizer(tokenizer, threads=1).info.sha256)
        gone = missing(recordings)
        if gone:
            raise RetokenizeFailed(
                f"{len(gone)} of {len(recordings)} files are missing, the first is {gone[0].name!r}: bring them back, "
                "or delete those recordings from the archive"
            )
        report = pipeline.index_files(
            engine, files_of(recordings), spare, tokenizer, workers=workers,
            codebook=None if anew else old.codebook_kind or "tokenizer",
            codes=codes, device=device, progress=progress,
        )  # fmt: skip
        with connection.begin():
            replace_archive(connection, name, spare)
    return report


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

    `tokenizer` is the one that it was made with. Raises like `retokenize`.
    """
    return retokenize(engine, name, tokenizer, anew=True, workers=workers, device=device, progress=progress)


def give_up(connection: Connection, name: str) -> None:
    """Delete what was made of an archive that is not to be made anew after all. Raises ArchiveBusy."""
    with contextlib.suppress(store.ArchiveNotFound):
        store.delete_archive(connection, spare_name(name))


def without_spares(archives: Sequence[store.ArchiveInfo]) -> list[store.ArchiveInfo]:
    """Archives, but for what is being made of others."""
    spares = {spare_name(archive.name) for archive in archives}
    return [archive for archive in archives if archive.name not in spares]


def spare_name(name: str) -> str:
    """What the archive is called while it is being made."""
    return name[: store.ARCHIVE_NAME_CHARACTERS - len(SUFFIX)] + SUFFIX


def replace_archive(connection: Connection, name: str, spare: str) -> None:
    """Give the archive `name` what was made for `spare`, which goes, in the caller's transaction.

    Raises RetokenizeFailed where that lacks a recording that the archive has, or has it from another place.
    """
    old, new = store.get_archive(connection, name), store.get_archive(connection, spare)
    store.lock_archive(connection, old, for_transaction=True)  # nobody adds to it from here on
    wanted = {recording.name: recording.path for recording in recordings_of(connection, old)}
    there = {recording.name: recording for recording in recordings_of(connection, new)}
    lacking = [n for n, path in wanted.items() if n not in there or there[n].path != path]
    if lacking:
        raise RetokenizeFailed(
            f"{len(lacking)} of {len(wanted)} recordings could not be indexed again, the first is {lacking[0]!r}: the "
            f"archive stays as it was; what was done is kept as {spare!r}"
        )
    for recording in there.values():
        if recording.name not in wanted:  # deleted meanwhile
            store.delete_recording(connection, new.id, recording.id)
    intake.adopt(connection, old.id, new.id)


def _clear(connection: Connection, spare: str, sha256: str) -> None:
    """Delete what an earlier run left if that was made with another tokenizer."""
    try:
        left = store.get_archive(connection, spare)
    except store.ArchiveNotFound:
        return
    if left.tokenizer_sha256 != sha256:
        store.delete_archive(connection, spare)
