"""An archive made anew with another tokenizer: indexed beside the old one, then put in its place at one stroke."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from sqlalchemy import Connection, Engine

from indexer import database, intake, pipeline, store
from indexer.discover import recording_name
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


def roots(recordings: list[store.RecordingInfo]) -> list[Path]:
    """What to index so that the files get the names that they have: files by themselves, and folders of deeper ones.

    Raises RetokenizeFailed where a path does not end in its recording's name.
    """
    files: list[Path] = []
    folders: dict[Path, None] = {}
    for recording in recordings:
        path, depth = Path(recording.path), recording.name.count("/")
        root = path.parents[depth] if depth < len(path.parents) else None
        if root is None or recording_name(path.relative_to(root)) != recording.name:
            raise RetokenizeFailed(f"the recording {recording.name!r} lies at {path}, which does not end in its name")
        if depth:
            folders[root] = None
        else:
            files.append(path)
    return files + list(folders)  # files first: of two with one name the first is taken


def retokenize(
    engine: Engine,
    name: str,
    tokenizer: Path,
    *,
    workers: int = 2,
    device: Device = "cpu",
    progress: Callable[[Progressed], None] | None = None,
) -> IndexReport:
    """Index an archive's files with another tokenizer and put the result in the archive's place.

    Names, the kind of codebook, and whether it has a quantiser stay what they were. Until the last moment searches
    find the old archive; if anything fails that stays, and what was done is kept under the name `name~adapting`,
    where another run goes on. Raises RetokenizeFailed, StoreError, and what `pipeline.index_archive` raises.
    """
    with database.connect(engine) as connection:
        old = store.get_archive(connection, name)
        recordings = list(recordings_of(connection, old))
        codes = old.codebook_id is not None and store.load_codebook(connection, old.codebook_id).pq is not None
    gone = missing(recordings)
    if gone:
        raise RetokenizeFailed(
            f"{len(gone)} of {len(recordings)} files are missing, the first is {gone[0].name!r}: bring them back, "
            "or delete those recordings from the archive"
        )
    spare = spare_name(name)
    with database.connect(engine) as connection, connection.begin():
        _clear(connection, spare, Tokenizer(tokenizer, threads=1).info.sha256)
    report = pipeline.index_archive(
        engine, roots(recordings), spare, tokenizer, workers=workers,
        codebook="archive" if old.codebook_kind == "archive" else "tokenizer",
        codes=codes, device=device, progress=progress,
    )  # fmt: skip
    with database.connect(engine) as connection, connection.begin():
        replace_archive(connection, name, spare)
    return report


def spare_name(name: str) -> str:
    """What the archive is called while it is being made."""
    return name[: store.ARCHIVE_NAME_CHARACTERS - len(SUFFIX)] + SUFFIX


def replace_archive(connection: Connection, name: str, spare: str) -> None:
    """Delete the archive `name` and give its name to `spare`, in the caller's transaction.

    Recordings of `spare` that the old archive does not have, since a folder holds more than it, are deleted. Raises
    RetokenizeFailed where it lacks one that the old archive has, or has it from another place.
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
        if recording.name not in wanted:
            store.delete_recording(connection, new.id, recording.id)
    intake.hand_over(connection, old.id, new.id)
    store.delete_archive(connection, name)
    store.rename_archive(connection, spare, name)


def _clear(connection: Connection, spare: str, sha256: str) -> None:
    """Delete what an earlier run left if that was made with another tokenizer."""
    try:
        left = store.get_archive(connection, spare)
    except store.ArchiveNotFound:
        return
    if left.tokenizer_sha256 != sha256:
        store.delete_archive(connection, spare)
