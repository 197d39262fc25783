"""A worker process: decodes, cuts and tokenizes the files it is told to, and sends back what is to be stored."""

from __future__ import annotations

import contextlib
import os
import queue
import resource
import select
import signal
import stat
import sys
import threading
import traceback
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from indexer import sources
from indexer.discover import Failure, FoundFile, hash_file, written_ns
from indexer.embedding import part_of, parts_of
from indexer.intake import NewSegment
from indexer.messages import (
    Busy,
    Hear,
    Heard,
    Index,
    Indexed,
    Measure,
    Measured,
    Part,
    Ready,
    Result,
    Setup,
    Task,
    UseCodebook,
)
from indexer.segment import Segment, Segmenter
from indexer.sources import Place, Url
from indexer.watchdog import Watchdog
from model import audio
from model.tokenizer import Tokenizer


class FileChanged(Exception):
    """The file was written to while it was being read."""

    code = "file_changed"


class AudioTooShort(Exception):
    """Less than one frame of sound."""

    code = "audio_too_short"


class Worker:
    """Does one task after another."""

    def __init__(self, setup: Setup) -> None:
        self.tokenizer = Tokenizer(setup.tokenizer_path, threads=1, device=setup.device)
        self.using: UseCodebook | None = None
        self.watchdog: Watchdog | None = None

    def do(self, task: Task) -> Result:
        """The result of a task; whatever goes wrong with one file is a Failure of that file."""
        with self.watchdog or contextlib.nullcontext():
            return self._done(task)

    def _done(self, task: Task) -> Result:
        if isinstance(task, Measure):
            return Measured([self._claimed_s(file.path) for file in task.files])
        try:
            heard = task.heard if isinstance(task, Index) else None
            if heard is not None:
                return self.index_heard(heard)
            return self._fetched(task, task.file.path) if isinstance(task.file.path, Url) else self._read(task)
        except (audio.AudioError, FileChanged, AudioTooShort) as error:
            return Failure(task.file.name, error.code, str(error))
        except MemoryError:
            return Failure(task.file.name, "memory_exceeded", "the file takes more memory than a worker may have")
        except OSError as error:
            return Failure(task.file.name, "audio_unreadable", f"cannot read the file: {error.strerror or error}")
        except Exception as error:
            traceback.print_exc()
            line = (str(error).strip().splitlines() or [""])[0]
            return Failure(task.file.name, "internal_error", f"{type(error).__name__}: {line}")

    def _read(self, task: Hear | Index) -> Heard | Indexed:
        if isinstance(task, Hear):
            return self.hear(task.file, task.stride, task.limit_s)
        return self.index(task.file)

    def _fetched(self, task: Hear | Index, url: Url) -> Heard | Indexed:
        """What is read of a file that lies elsewhere. Raises as `hear`."""
        with sources.fetched(url, self._fed) as (path, size, stamp):
            result = self._read(replace(task, file=replace(task.file, path=path)))
        if sources.look(url) != (size, stamp):
            raise FileChanged("the file was written to while it was being read")
        return replace(result, file=replace(task.file, bytes=size, mtime_ns=stamp))

    def _fed(self) -> None:
        if self.watchdog is not None:
            self.watchdog.fed()

    def hear(self, file: FoundFile, stride: int, limit_s: float) -> Heard:
        """Embed what is wanted of a file. Raises AudioError, AudioTooShort, FileChanged, OSError."""
        reading = _Reading(file, self.tokenizer, self.watchdog)
        parts: list[Part] = []
        held_s = 0.0
        whole = stride == 1
        some = (part_of(segment, self.tokenizer) for segment in islice(reading.segments(), 0, None, stride))
        for part in reading.parts() if whole else some:
            held_s += len(part.embeddings) * self.tokenizer.info.frame_seconds
            if held_s > limit_s:
                whole = False
                break
            parts.append(part)
        return Heard(reading.finish(), reading.sha256, reading.duration_s, parts, whole)

    def index(self, file: FoundFile) -> Indexed:
        """Tokens of a file, one segment in memory at a time. Raises like `hear`."""
        reading = _Reading(file, self.tokenizer, self.watchdog)
        collector = self._collector()
        for part in reading.parts():
            collector.add(part)
        return collector.result(reading.finish(), reading.sha256, reading.duration_s)

    def index_heard(self, heard: Heard) -> Indexed:
        """Tokens of a file that has been heard whole."""
        collector = self._collector()
        for part in heard.parts:
            collector.add(part)
        return collector.result(heard.file, heard.sha256, heard.duration_s)

    def _claimed_s(self, path: Place) -> float | None:
        self._fed()
        if isinstance(path, Url):
            return sources.claimed_s(path)
        try:
            _stat(path)
            return audio.duration_s(path)
        except audio.AudioError:
            return None

    def _collector(self) -> _Collector:
        assert self.using is not None
        return _Collector(self.tokenizer, self.using)


class _Reading:
    """One file being read: its hash first, then its segments, then whether it is still the same file."""

    def __init__(self, file: FoundFile, tokenizer: Tokenizer, watchdog: Watchdog | None) -> None:
        info = tokenizer.info
        assert isinstance(file.path, Path)  # what lies elsewhere has been fetched
        self.file, self._path = file, file.path
        self._watchdog = watchdog
        self._tokenizer = tokenizer
        self._frame_s = info.frame_seconds
        self._before = _stat(self._path)
        if self._before.st_size == 0:
            raise audio.AudioEmpty("the file is empty (0 bytes)")
        self.sha256 = hash_file(self._path, self._fed)
        self._cutter = Segmenter(info.left_context_samples, info.right_context_samples, tokenizer.frame_samples)

    def segments(self) -> Iterator[Segment]:
        return self._cutter.segments(self._chunks())

    def parts(self) -> Iterator[Part]:
        return parts_of(self._chunks(), self._cutter, self._tokenizer)

    def _chunks(self) -> Iterator[audio.Samples]:
        for chunk in audio.read_chunks(self._path):
            self._fed()
            yield chunk

    def _fed(self) -> None:
        if self._watchdog is not None:
            self._watchdog.fed()

    @property
    def duration_s(self) -> float:
        """Seconds read so far."""
        return self._cutter.total_samples / audio.SAMPLE_RATE

    def finish(self) -> FoundFile:
        """The file as it was while it was read. Raises FileChanged, AudioTooShort."""
        before, after = self._before, _stat(self._path)
        if (before.st_size, before.st_mtime_ns, before.st_ino) != (after.st_size, after.st_mtime_ns, after.st_ino):
            raise FileChanged("the file was written to while it was being read")
        if self._cutter.total_samples < self._cutter.frame_samples:
            raise AudioTooShort(
                f"{self.duration_s * 1000:.0f} ms of sound, where at least {self._frame_s * 1000:.0f} ms are needed"
            )
        return FoundFile(self.file.name, self.file.path, before.st_size, written_ns(before))


class _Collector:
    """Turns parts of one file into segments to store, and counts; what two segments share is counted once."""

    def __init__(self, tokenizer: Tokenizer, using: UseCodebook) -> None:
        self._tokenizer = tokenizer
        self._using = using
        self._segments: list[NewSegment] = []
        self._used = np.zeros(using.codebook.size, np.int64)
        self._speech_frames = self._speech_tokens = 0
        self._cosines = 0.0  # of all speech frames
        self._end_frame = 0

    def add(self, part: Part) -> None:
        start_s = part.start_frame * self._tokenizer.info.frame_seconds
        string = self._tokenizer.collapse(part.embeddings, self._using.codebook, start_s)
        self._segments.append(NewSegment(start_s, string.frames, string.to_bytes()))
        overlap = self._end_frame - part.start_frame  # frames that the segment before has counted
        begins = string.boundaries[:-1]
        fresh = begins >= overlap
        spoken = overlap + np.flatnonzero(part.speech[overlap:])
        self._speech_frames += len(spoken)
        self._cosines += float(self._using.codebook.cosines(part.embeddings[spoken], string.frame_ids[spoken]).sum())
        self._speech_tokens += int(part.speech[begins[fresh]].sum())
        self._used += np.bincount(string.ids[fresh], minlength=len(self._used))
        self._end_frame = part.start_frame + string.frames

    def result(self, file: FoundFile, sha256: str, duration_s: float) -> Indexed:
        speech_s = self._speech_frames * self._tokenizer.info.frame_seconds
        cosine = self._cosines / max(1, self._speech_frames)
        return Indexed(file, sha256, duration_s, self._segments, speech_s, self._speech_tokens, self._used, cosine)


def _stat(path: Path) -> os.stat_result:
    try:
        about = path.stat()
    except OSError as error:
        raise audio.AudioMissing(f"cannot read the file: {error.strerror or error}") from error
    if not stat.S_ISREG(about.st_mode):  # any more
        raise audio.AudioMissing("cannot read the file: it is not a regular file")
    return about


def main(descriptor: int) -> None:
    """Serve the coordinator at the other end of `descriptor` until it hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the coordinator decides
    connection: Connection = Connection(descriptor)
    setup: Setup = connection.recv()
    worker = Worker(setup)
    worker.watchdog = Watchdog(setup.stall_s, lambda: _tell(connection))
    if setup.device == "cpu":
        _limit_memory(setup.memory_mb)
    connection.send(Ready())
    # A thread reads ahead, so that neither side ever waits for the other to read while it writes itself.
    for message in _messages(connection):
        if isinstance(message, UseCodebook):
            worker.using = message
        else:
            connection.send(worker.do(message))


def _tell(connection: Connection) -> None:
    """Say that the task goes on, unless the coordinator has so much to read already that one would wait for it."""
    if select.select([], [connection], [], 0)[1]:
        connection.send(Busy())


def _limit_memory(more_mb: float) -> None:
    """Allow the process so much data beside what it holds now, where the system can tell and limit that."""
    with contextlib.suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5])  # data and stack
        most = pages * resource.getpagesize() + int(more_mb * 1e6)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _messages(connection: Connection) -> Iterator[Task | UseCodebook]:
    inbox: queue.SimpleQueue[Task | UseCodebook] = queue.SimpleQueue()

    def read() -> None:
        try:
            while True:
                inbox.put(connection.recv())
        except (EOFError, OSError):
            os._exit(0)  # the coordinator is gone: nobody waits for what is being done
        finally:
            os._exit(1)  # out of memory: whoever is waited for must not wait itself

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield inbox.get()


if __name__ == "__main__":
    main(int(sys.argv[1]))
