"""Recordings that were sent in: kept in the data folder under names of our own, until nothing refers to them."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from uuid import uuid4

from sqlalchemy import Connection, text

from indexer import store
from indexer.discover import AUDIO_SUFFIXES, NAME_BYTES
from indexer.recordings import Filter, list_recordings, recording_ids, recordings_by_id
from service import archives
from service.deps import Backend
from service.errors import BadRequest, RecordingNameTaken, StorageFull
from service.faults import is_full
from service.jobs import queue
from service.jobs.queue import JobInfo

FOLDER = "uploads"  # in the data folder
STRAY_S = 3_600.0  # after so long a file that nothing refers to is cleared away
_BLOCK = 1 << 20


def folder(home: Path) -> Path:
    """Where recordings that are sent in are kept."""
    return Path(os.path.abspath(home / FOLDER))


def check_name(name: str) -> str:
    """A recording's name as it may be given: a relative path with slashes. Raises BadRequest."""
    parts = name.split("/")
    if not name.isprintable() or len(name.encode("utf-8", "surrogatepass")) > NAME_BYTES:
        raise BadRequest(f"a recording's name is printable and has at most {NAME_BYTES} bytes", "file")
    if any(part in ("", ".", "..") for part in parts):
        raise BadRequest(f"{name!r} is no name of a recording: a file name, or a relative path with slashes", "file")
    return name


@dataclass(frozen=True, eq=False)
class Sent:
    """A recording as it was sent in, and what its owner says of it."""

    name: str
    source: BinaryIO
    metadata: dict[str, Any] | None
    external_id: str | None


def receive(connection: Connection, backend: Backend, archive: str, sent: Sequence[Sent], *, replace: bool) -> JobInfo:
    """Keep recordings, and ask for a job that indexes them; all of them or none.

    Raises RecordingNameTaken, ExternalIdTaken, StorageFull; TokenizerMismatch, BadArchiveName.
    """
    names = [one.name for one in sent]
    if len(set(names)) < len(names):
        raise RecordingNameTaken("two of the files have one name", "file")
    about = archives.open_or_make(connection, backend, archive)
    replaced = _replaced(connection, about, sent, replace)
    connection.commit()  # nothing is held while files are written
    home = backend.settings.home_path
    kept: list[Path] = []
    try:
        for one in sent:
            kept.append(keep(home, one.name, one.source))  # noqa: PERF401 (what is kept when one fails is dropped)
        files = [
            {"name": one.name, "path": str(path), "metadata": one.metadata, "external_id": one.external_id}
            for one, path in zip(sent, kept, strict=True)
        ]
        parameters = {"files": files, "replace": replace, "replaces": replaced}
        number = queue.add(connection, about.id, "index_upload", store.storable_json(parameters))
        job = queue.get(connection, number)
        connection.commit()
    except BaseException:
        drop(home, kept)
        raise
    return job


def _replaced(connection: Connection, archive: store.ArchiveInfo, sent: Sequence[Sent], replace: bool) -> list[str]:
    """Paths of the recordings whose places are taken. Raises RecordingNameTaken, ExternalIdTaken."""
    paths = []
    known = recordings_by_id(connection, recording_ids(connection, archive.id, [one.name for one in sent]))
    for recording in known.values():
        if not replace:
            raise RecordingNameTaken(f"the archive has a recording named {recording.name!r} already", "file")
        paths.append(recording.path)
    for one in sent:
        if one.external_id is not None:
            others = list_recordings(connection, archive.id, 1, 0, Filter(external_id=one.external_id))
            if others and others[0].name != one.name:
                taken = f"the recording {others[0].name!r} has the id {one.external_id!r} already"
                raise store.ExternalIdTaken(taken)
    return paths


def keep(home: Path, name: str, source: BinaryIO) -> Path:
    """Write a recording to the data folder, whole or not at all; where it lies. Raises StorageFull.

    Nothing of the given name becomes part of the path but an ending that is known.
    """
    suffix = PurePosixPath(name).suffix.lower()
    own = uuid4().hex
    path = folder(home) / own[:2] / f"{own}{suffix if suffix in AUDIO_SUFFIXES else ''}"
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("xb") as file:
            shutil.copyfileobj(source, file, _BLOCK)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if is_full(error):
            raise StorageFull("there is no room for the recording in the data folder", "file") from error
        raise StorageFull(f"the recording cannot be kept: {error.strerror or error}", "file") from error
    return path


def is_kept(home: Path, path: str | Path) -> bool:
    """Whether a path is that of a recording that was sent in."""
    return Path(path).is_relative_to(folder(home))


def sent_to(connection: Connection, home: Path, archive_id: int) -> list[str]:
    """Paths of an archive's recordings that were sent in, and of those that wait to be indexed into it."""
    rows = connection.execute(
        text("""
            SELECT path FROM recording WHERE archive_id = :id
            UNION ALL SELECT convert_to(file ->> 'path', 'UTF8')
            FROM job, jsonb_array_elements(job.parameters -> 'files') AS file
            WHERE job.archive_id = :id AND job.kind = 'index_upload'
        """),
        {"id": archive_id},
    )
    return [path for path in (os.fsdecode(bytes(row.path)) for row in rows) if is_kept(home, path)]


def drop(home: Path, paths: Iterable[str | Path]) -> None:
    """Remove what was sent in; other files are not touched, and one that is gone already is no matter."""
    for path in paths:
        if is_kept(home, path):
            with contextlib.suppress(OSError):
                Path(path).unlink(missing_ok=True)


def sweep(home: Path, connection: Connection, stray_s: float = STRAY_S) -> int:
    """Remove files that no recording and no open job refers to, and that have been there for so long; how many."""
    before = time.time() - stray_s
    old = []
    for path in folder(home).glob("*/*"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < before:
                old.append(path)
    kept = used(connection, old)
    stray = [path for path in old if path not in kept]
    drop(home, stray)
    return len(stray)


def used(connection: Connection, paths: Iterable[Path]) -> set[Path]:
    """Those of `paths` that a recording or an open job refers to."""
    wanted = {os.fsencode(path): path for path in paths}
    if not wanted:
        return set()
    rows = connection.execute(text("SELECT path FROM recording WHERE path = ANY(:paths)"), {"paths": list(wanted)})
    found = {wanted[bytes(row.path)] for row in rows}
    rows = connection.execute(
        text("""
            SELECT file ->> 'path' AS path FROM job, jsonb_array_elements(job.parameters -> 'files') AS file
            WHERE job.state IN ('queued', 'running') AND job.kind = 'index_upload'
        """)
    )
    return found | ({Path(row.path) for row in rows} & set(wanted.values()))
