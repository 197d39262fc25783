"""The local index: an archive's shards on this machine, kept in step with the database, which alone is true.

Before each search the archive's revision is compared; where it has changed, recordings that are gone are masked and
new ones are read. Shards lie in the data folder, so that they are read once a machine; where they are lost, damaged
or cannot be written they are made again, or kept in memory.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from uuid import uuid4

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection

from indexer import store
from indexer.segments import fingerprints, segments_of
from model.codebook import Codebook
from model.tokens import TokenString
from service.search import shard
from service.search.located import Int64
from service.search.shard import Shard, StoredSegment

log = logging.getLogger(__name__)

FOLDER = "index"  # in the data folder
MOST_ARCHIVES = 64  # held in memory; the one asked for longest ago goes first
LEAST_ALIVE = 0.75  # of a shard's segments: with fewer it is made anew without the others
READ_RECORDINGS = 500  # at a time
UNUSED_S = 30 * 86_400.0  # after so long without a search an archive's folder is cleared away

Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Part:
    """A shard, which of its segments are `alive` bool [segments], and where it lies."""

    shard: Shard
    alive: Bool
    path: Path | None = None


@dataclass(frozen=True, eq=False)
class View:
    """An archive as it was at a revision; nothing in it changes."""

    revision: int
    parts: tuple[Part, ...]

    @property
    def postings(self) -> int:
        """Of all shards."""
        return sum(len(part.shard.postings) for part in self.parts)

    @property
    def bytes(self) -> int:
        """Of all arrays."""
        return sum(array.nbytes for part in self.parts for array in part.shard.arrays().values())

    def shards_of(self, part: Int64) -> Iterator[tuple[Int64, Shard]]:
        """For each part that occurs in `part` [entries]: which entries have it, and its shard."""
        for number in np.unique(part):
            yield np.flatnonzero(part == number), self.parts[number].shard


class LocalIndex:
    """The shards of all archives that are asked for; threads and processes may share the folder."""

    def __init__(self, folder: Path | None) -> None:
        """`folder` is made where it is needed; None keeps everything in memory."""
        self._folder = folder
        self._views: OrderedDict[tuple[int, str], View] = OrderedDict()
        self._locks: dict[tuple[int, str], threading.Lock] = {}
        self._lock = threading.Lock()

    def view(self, connection: Connection, archive: store.ArchiveInfo, codebook: Codebook) -> View:
        """The archive as the database has it at `archive.revision`, or later; `codebook` is the one in force."""
        key = (archive.id, codebook.sha256)
        with self._lock:
            known = self._views.get(key)
            if known is not None and known.revision >= archive.revision:
                self._views.move_to_end(key)
                return known
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            with self._lock:
                known = self._views.get(key)
            if known is not None and known.revision >= archive.revision:
                return known
            view = self._synchronised(connection, archive, codebook, known)
            with self._lock:
                self._views[key] = view
                self._views.move_to_end(key)
                for other in [k for k in self._views if k[0] == archive.id and k != key]:
                    del self._views[other]
                while len(self._views) > MOST_ARCHIVES:
                    self._views.popitem(last=False)
            return view

    def _synchronised(
        self, connection: Connection, archive: store.ArchiveInfo, codebook: Codebook, known: View | None
    ) -> View:
        assert archive.codebook_id is not None
        revision, wanted = fingerprints(connection, archive.id, archive.codebook_id)
        folder = self._prepared(archive, codebook.sha256)
        with _locked(folder):
            held = list(known.parts) if known is not None else []
            if folder is not None:
                held = _from_folder(folder, held, codebook.size, codebook.parts)
            held, lacking = _compared(held, wanted)
            fresh = list(_read(connection, lacking, archive.codebook_id, codebook.size, codebook.parts))
            for one in fresh:
                codebook.check_codes(one.pq)
            held = _compacted(held, fresh, folder)
        return View(revision, tuple(held))

    def _prepared(self, archive: store.ArchiveInfo, codebook_sha256: str) -> Path | None:
        """The folder of an archive with a codebook, marked as used now; None where there can be none."""
        if self._folder is None:
            return None
        # An id says nothing of which database it is from; with the moment the archive was made it does.
        name = f"{archive.created_at.timestamp():.6f}-{archive.id}-{codebook_sha256[:16]}"
        path = self._folder / name
        try:
            path.mkdir(parents=True, exist_ok=True)
            (path / "lock").touch()
            os.utime(path)
        except OSError as error:
            log.warning("the local index cannot be written to %s (%s): it is kept in memory", path, error)
            return None
        return path

    def clear_unused(self, unused_s: float = UNUSED_S) -> int:
        """Remove the folders of archives that nobody has searched for so long; how many."""
        if self._folder is None or not self._folder.is_dir():
            return 0
        old = [f for f in self._folder.iterdir() if f.is_dir() and time.time() - f.stat().st_mtime > unused_s]
        for folder in old:
            shutil.rmtree(folder, ignore_errors=True)
        return len(old)


def prepare(index: LocalIndex, connection: Connection, archive: str) -> None:
    """Bring what is held of an archive up to date, so that the first search need not wait. Raises ArchiveNotFound."""
    about = store.get_archive(connection, archive)
    if about.codebook_id is not None:
        index.view(connection, about, store.load_codebook(connection, about.codebook_id))


@contextmanager
def _locked(folder: Path | None) -> Iterator[None]:
    """One process at a time changes a folder; the lock goes with the process, however that ends."""
    if folder is None:
        yield
        return
    with (folder / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _from_folder(folder: Path, held: list[Part], codebook_size: int, parts: int) -> list[Part]:
    """What lies in the folder, with shards that are open already kept open, and those that are only in memory."""
    is_open = {part.path: part for part in held if part.path is not None}
    found = [part for part in held if part.path is None]
    for path in sorted(folder.glob(f"*{shard.SUFFIX}")):
        if path in is_open:
            found.append(is_open[path])
            continue
        try:
            loaded = shard.load(path)
            if (loaded.codebook_size, loaded.pq.shape[1]) != (codebook_size, parts):
                raise shard.ShardError(f"{path.name} is of another codebook")
            found.append(Part(loaded, np.ones(loaded.segments, np.bool_), path))
        except (OSError, ValueError) as error:
            log.warning("%s is made anew: %s", path, error)
            _remove(path)
    return found


def _compared(held: list[Part], wanted: dict[int, int]) -> tuple[list[Part], list[int]]:
    """Parts with their segments alive that are `wanted` (fingerprints by recording), each once; what they lack."""
    ids = np.fromiter(wanted.keys(), np.int64, len(wanted))
    prints = np.fromiter(wanted.values(), np.int64, len(wanted))
    order = np.argsort(ids)
    ids, prints = ids[order], prints[order]
    served = np.zeros(len(ids), np.bool_)
    out = []
    for part in held:
        if len(ids) == 0:
            alive = np.zeros(part.shard.segments, np.bool_)
        else:
            at = np.minimum(np.searchsorted(ids, part.shard.recording), len(ids) - 1)
            alive = (ids[at] == part.shard.recording) & (prints[at] == part.shard.fingerprint) & ~served[at]
            served[at[alive]] = True
        out.append(Part(part.shard, alive, part.path))
    return out, ids[~served].tolist()


def _read(
    connection: Connection, recordings: list[int], codebook_id: int, codebook_size: int, parts: int
) -> Iterator[Shard]:
    """Shards of recordings as they are stored now, each as large as a shard may be; damaged ones are left out."""
    waiting: list[StoredSegment] = []
    frames = 0
    for start in range(0, len(recordings), READ_RECORDINGS):
        rows = segments_of(connection, recordings[start : start + READ_RECORDINGS], codebook_id)
        for recording_id, group in groupby(rows, key=lambda row: row.recording_id):
            stored = list(group)
            if not all(row.intact for row in stored):
                log.error("recording %d is damaged and not searched: run `sayagain check --repair`", recording_id)
                continue
            recording = [
                StoredSegment(row.recording_id, row.fingerprint, row.position, TokenString.from_bytes(row.tokens))
                for row in stored
            ]
            more = sum(segment.tokens.frames for segment in recording)
            if waiting and frames + more > shard.MAX_FRAMES:
                yield shard.build(waiting, codebook_size, parts)
                waiting, frames = [], 0
            waiting += recording
            frames += more
    if waiting:
        yield shard.build(waiting, codebook_size, parts)


def _compacted(held: list[Part], fresh: list[Shard], folder: Path | None) -> list[Part]:
    """All parts, without those that are dead and with small ones joined: their number grows with the logarithm.

    A shard is joined with the smaller ones before it where it is not twice as large as they are together (the merge
    of a log-structured index: O'Neil et al. 1996). What is new is written to the folder, then what it replaces goes.
    """
    parts = [part for part in held if part.alive.any()]
    changed = len(parts) < len(held) or bool(fresh)
    parts += [Part(one, np.ones(one.segments, np.bool_)) for one in fresh]
    out: list[Part] = []
    group: list[Part] = []
    total = 0
    for part in sorted(parts, key=lambda p: p.shard.frames):
        frames = part.shard.frames
        if group and (frames > 2 * total or total + frames > shard.MAX_FRAMES):
            out.append(_joined(group))
            group, total = [], 0
        group.append(part)
        total += frames
    if group:
        out.append(_joined(group))
    if folder is None:
        return out
    out = [part if part.path is not None else _written(part, folder) for part in out]
    if changed or len(out) < len(parts):
        for path in {part.path for part in held} - {part.path for part in out}:
            if path is not None:
                _remove(path)
    return out


def _joined(group: list[Part]) -> Part:
    if len(group) == 1 and group[0].alive.mean() >= LEAST_ALIVE:
        return group[0]
    kept = [part.shard if part.alive.all() else part.shard.kept(part.alive) for part in group]
    joined = kept[0] if len(kept) == 1 else shard.merge(kept)
    return Part(joined, np.ones(joined.segments, np.bool_))


def _written(part: Part, folder: Path) -> Part:
    """The part in a file, or in memory where that cannot be written."""
    path = folder / f"{uuid4().hex}{shard.SUFFIX}"
    try:
        shard.save(part.shard, path)
        return Part(shard.load(path), part.alive, path)
    except OSError as error:
        log.warning("the local index cannot be written to %s (%s): this part is kept in memory", folder, error)
        return part


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s cannot be removed: %s", path, error)
