"""Untrusted sound is decoded in processes of its own: one that hangs, swells or dies takes one clip with it.

A clip is a file for FFmpeg's C code, made by anybody. Each process has limits of memory and of what it may touch, and
its tasks one of time, which is watched from here.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import queue
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from model.audio import AudioError, Samples
from service.clips import Clip
from service.decoder import KNOWN, OUT_OF_MEMORY, READY, Channel, ReadBetween, ReadClip, Sound, Task, unpacked
from service.errors import DecoderFailed, SayagainError, TooBusy

START_S = 60.0  # in which a process has to be ready, however busy the machine is
END_S = 5.0  # in which one that has hung up has to be gone
NO_MEMORY = "out of memory"
TASKS = 1_000  # of one process: whatever decoders leak does not add up for ever
# What a process gets of the service's environment, which has secrets: a decoder that was taken over finds none.
ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONHOME", "TMPDIR")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "MALLOC_ARENA_MAX")
# Bytes that a process keeps between two clips: to get the pages of a short one anew takes a sixth of its time.
MALLOC = {"MALLOC_TOP_PAD_": 8 << 20, "MALLOC_MMAP_THRESHOLD_": 32 << 20, "MALLOC_TRIM_THRESHOLD_": 64 << 20}
# Spawned, never forked, and without the caller's main module, like the indexer's workers.
_START = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[3]); from service.decoder import main;"
    " main(int(sys.argv[1]), float(sys.argv[2]))"
)

T = TypeVar("T")
log = logging.getLogger("sayagain.decoding")


class DecodersFailed(Exception):
    """Decoder processes cannot be started: a fault of ours."""


class Decoders:
    """So many decoder processes, each started when it is first needed; threads may share them."""

    def __init__(self, count: int = 2, memory_mb: float = 1_024.0, timeout_s: float = 20.0) -> None:
        """`memory_mb` is what a process may take more than it does when it starts, `timeout_s` is for each task."""
        self.count = count
        self._memory_mb, self._timeout_s = memory_mb, timeout_s
        self._lock = threading.Lock()
        self._free: list[_Decoder | None] = [None] * count  # None: a place whose process is not started
        self._waiting: deque[queue.SimpleQueue[_Decoder | None]] = deque()
        self._started: set[_Decoder] = set()
        self._closed = False

    def read_clip(
        self, source: bytes | Path, max_s: float, start_s: float | None = None, end_s: float | None = None
    ) -> Clip:
        """As `service.clips.read_clip`. Raises as that does, DecoderFailed, and TooBusy where no process is free."""

        def clip(sound: Sound) -> Clip:
            before, samples, after = sound.parts
            return Clip(before, samples, after, float(sound.numbers["start_s"]), float(sound.numbers["duration_s"]))

        return self._ask(ReadClip(source, max_s, start_s, end_s), clip)

    def read_between(self, path: Path, start_s: float, end_s: float) -> Samples:
        """As `model.audio.read_between`. Raises as that does, DecoderFailed, and TooBusy where no process is free."""

        def samples(sound: Sound) -> Samples:
            (only,) = sound.parts
            return only

        return self._ask(ReadBetween(path, start_s, end_s), samples)

    @property
    def pids(self) -> list[int]:
        """Process ids of the decoders that are running."""
        with self._lock:
            return [decoder.process.pid for decoder in self._started]

    def close(self) -> None:
        """End all processes; what is being decoded is not wanted any more."""
        with self._lock:
            self._closed = True
            started = list(self._started)
        for decoder in started:
            self._end(decoder)

    def _ask(self, task: Task, build: Callable[[Sound], T]) -> T:
        decoder = self._take()
        try:
            if decoder is not None and not decoder.is_good():
                self._end(decoder)
                decoder = None
            if decoder is None:
                decoder = self._start()
            answer = decoder.do(task, self._timeout_s)
            if isinstance(answer, Sound):
                return _built(answer, build)
        except BaseException:
            if decoder is not None:
                self._end(decoder)
                decoder = self._restarted()
            raise
        finally:
            self._give(decoder)
        raise answer

    def _take(self) -> _Decoder | None:
        """A free place, first come, first served. Raises TooBusy."""
        with self._lock:
            if self._free and not self._waiting:
                best = max(range(len(self._free)), key=lambda place: _readiness(self._free[place]))
                return self._free.pop(best)
            ticket: queue.SimpleQueue[_Decoder | None] = queue.SimpleQueue()
            self._waiting.append(ticket)
        try:
            return ticket.get(timeout=self._timeout_s)
        except queue.Empty:
            with self._lock:
                if ticket in self._waiting:
                    self._waiting.remove(ticket)
                    raise TooBusy("too many clips are being decoded", 1.0) from None
            return ticket.get()  # it came at the last moment

    def _give(self, decoder: _Decoder | None) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().put(decoder)
            else:
                self._free.append(decoder)

    def _start(self) -> _Decoder:
        with self._lock:
            if self._closed:
                raise DecodersFailed("the service is being closed")
            decoder = _Decoder(self._memory_mb)
            self._started.add(decoder)
            return decoder

    def _restarted(self) -> _Decoder | None:
        """One in the place of one that failed, so that the next clip need not wait for it."""
        try:
            return self._start()
        except DecodersFailed:
            return None

    def _end(self, decoder: _Decoder) -> None:
        decoder.end()
        with self._lock:
            self._started.discard(decoder)


class _Decoder:
    """One process. One thread at a time asks it."""

    def __init__(self, memory_mb: float) -> None:
        """Raises DecodersFailed."""
        self._memory_mb = memory_mb
        self._tasks = 0
        self.is_ready = False
        ours, theirs = socket.socketpair()
        path = json.dumps([entry or os.getcwd() for entry in sys.path])
        kept = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        try:
            self.process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-c", _START, str(theirs.fileno()), str(memory_mb), path],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=kept | dict.fromkeys(THREADS, "1") | {name: str(size) for name, size in MALLOC.items()},
                start_new_session=True,  # an interrupt at the terminal is the service's
            )
        except OSError as error:
            ours.close()
            raise DecodersFailed(f"a decoder process cannot be started: {error.strerror or error}") from error
        finally:
            theirs.close()
        self._channel = Channel(ours)

    def is_good(self) -> bool:
        """Whether it is to be given one task more."""
        return self.process.poll() is None and self._tasks < TASKS

    def do(self, task: Task, timeout_s: float) -> Sound | AudioError | SayagainError:
        """What comes of a task, errors of the clip among it. Raises DecoderFailed, and is to be ended then."""
        self._get_ready()
        self._tasks += 1
        until = time.monotonic() + timeout_s
        try:
            self._channel.send(pickle.dumps(task, pickle.HIGHEST_PROTOCOL), until)
            said, samples = unpacked(self._channel.receive(int(self._memory_mb * 1e6), until))
            if "error" in said:
                return _error(said)
            lengths = said["lengths"]
            if min(lengths) < 0 or sum(lengths) != len(samples):
                raise ValueError("not as many samples as it says")
            parts = np.split(samples, np.cumsum(lengths)[:-1])
            return Sound(parts, dict(said["numbers"]))
        except TimeoutError:
            raise self._failed(f"the clip took longer than {timeout_s:g} s to decode", "too slow") from None
        except (EOFError, OSError):
            fate = self._fate()
            what = "takes too much memory to decode" if fate == NO_MEMORY else "broke its decoder"
            raise self._failed(f"the clip {what}", fate) from None
        except Exception as error:  # whatever has become of the process that says this
            raise self._failed("the clip broke its decoder", f"said nonsense: {error!r}") from error

    def end(self) -> None:
        """Kill it, whatever it is at, and wait for it to be gone."""
        self.process.kill()
        self.process.wait()
        self._channel.close()

    def _get_ready(self) -> None:
        """Raises DecodersFailed."""
        if self.is_ready:
            return
        try:
            self.is_ready = self._channel.receive(len(READY), time.monotonic() + START_S) == READY
        except (EOFError, OSError, ValueError):
            self.is_ready = False
        if not self.is_ready:
            raise DecodersFailed(f"a decoder process does not start: {self._fate()}")

    def _fate(self) -> str:
        """What has become of the process, which has hung up."""
        try:
            status = self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            return "it hangs"
        if status == OUT_OF_MEMORY:
            return NO_MEMORY
        return f"signal {-status}" if status < 0 else f"exit status {status}"

    def _failed(self, message: str, why: str) -> DecoderFailed:
        log.warning("decoder %d is replaced: %s", self.process.pid, why)
        return DecoderFailed(message)


def _readiness(decoder: _Decoder | None) -> int:
    return 0 if decoder is None else 1 + decoder.is_ready


def _built(sound: Sound, build: Callable[[Sound], T]) -> T:
    """Raises DecoderFailed where the answer is not what the task gives."""
    try:
        return build(sound)
    except (ValueError, KeyError, TypeError) as error:
        raise DecoderFailed("the clip broke its decoder") from error


def _error(said: dict[str, object]) -> AudioError | SayagainError:
    """An error as the decoder met it. Raises KeyError."""
    kind, message, field = KNOWN[str(said["error"])], str(said["message"]), said["field"]
    if issubclass(kind, SayagainError):
        return kind(message, None if field is None else str(field))
    return kind(message)
