"""A decoder process: reads sound that strangers sent, within limits of memory and of what it may touch.

What it answers is arrays and numbers, or one of a few known errors: nothing of it is unpickled by the service.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import select
import signal
import socket
import struct
import threading
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from model import audio
from model.audio import AudioEmpty, AudioError, AudioMissing, AudioUndecodable, Samples
from service.clips import read_clip
from service.errors import BadStretch, DecoderFailed, QueryTooLong, SayagainError

READY = b"ready"
OUT_OF_MEMORY = 71  # exit status
FILES = 32  # that may be open
SAMPLES_AT = 16  # bytes: in a message they begin at a multiple of it, where arrays are read fastest
KNOWN: dict[str, type[AudioError | SayagainError]] = {
    known.__name__: known
    for known in (AudioMissing, AudioEmpty, AudioUndecodable, QueryTooLong, BadStretch, DecoderFailed)
}

_LENGTH = struct.Struct("<Q")


class Channel:
    """Messages through a socket, either whole or not at all; `until`, by `time.monotonic`, is when one has to be there.

    Raises TimeoutError; EOFError or another OSError where nobody is at the other end.
    """

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected

    def send(self, message: bytes, until: float | None = None) -> None:
        """All of a message."""
        self._wait(until)
        self._socket.sendall(_LENGTH.pack(len(message)) + message)  # at once: the other end wakes up but once

    def receive(self, most_bytes: int, until: float | None = None) -> bytearray:
        """The next message. Raises ValueError where it is longer than `most_bytes`."""
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size, until))
        if length > most_bytes:
            raise ValueError(f"a message of {length} bytes, where {most_bytes} are allowed")
        return self._exactly(length, until)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def _exactly(self, length: int, until: float | None) -> bytearray:
        message = bytearray(length)
        view = memoryview(message)
        while view:
            self._wait(until)
            got = self._socket.recv_into(view)
            if got == 0:
                raise EOFError
            view = view[got:]
        return message

    def _wait(self, until: float | None) -> None:
        if until is not None and time.monotonic() >= until:
            raise TimeoutError
        self._socket.settimeout(None if until is None else max(1e-3, until - time.monotonic()))


@dataclass(frozen=True, eq=False)
class Sound:
    """What a task gives: arrays of samples, and numbers about them."""

    parts: list[Samples]
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ReadClip:
    """As `service.clips.read_clip`: before, samples, after; start_s, duration_s."""

    source: bytes | Path
    max_s: float
    start_s: float | None = None
    end_s: float | None = None

    def do(self) -> Sound:
        """Raises AudioError, QueryTooLong, BadStretch."""
        clip = read_clip(self.source, self.max_s, self.start_s, self.end_s)
        numbers = {"start_s": clip.start_s, "duration_s": clip.duration_s}
        return Sound([clip.before, clip.samples, clip.after], numbers)


@dataclass(frozen=True)
class ReadBetween:
    """As `model.audio.read_between`: samples."""

    path: Path
    start_s: float
    end_s: float

    def do(self) -> Sound:
        """Raises AudioError."""
        return Sound([audio.read_between(self.path, self.start_s, self.end_s)])


Task = ReadClip | ReadBetween


def main(descriptor: int, memory_mb: float) -> None:
    """Serve the process at the other end of `descriptor` until it hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the service decides
    connected = socket.socket(fileno=descriptor)
    channel = Channel(connected)
    threading.Thread(target=_follow, args=(descriptor,), daemon=True).start()
    _limit(memory_mb)
    with contextlib.suppress(EOFError, OSError):
        channel.send(READY)
        while True:
            task: Task = pickle.loads(channel.receive(1 << 62))  # noqa: S301 (the service's own)
            _answer(channel, task)


def _answer(channel: Channel, task: Task) -> None:
    try:
        sound = task.do()
    except MemoryError:
        os._exit(OUT_OF_MEMORY)  # what is left of this process is not worth to be gone on with
    except Exception as error:
        name = type(error).__name__
        if name in KNOWN:
            said = {"error": name, "message": str(error), "field": getattr(error, "field", None)}
        else:
            traceback.print_exc()
            said = {"error": DecoderFailed.__name__, "message": "the clip broke its decoder", "field": None}
        channel.send(packed(said))
        return
    said = {"lengths": [len(part) for part in sound.parts], "numbers": sound.numbers}
    channel.send(packed(said, np.concatenate(sound.parts).astype("<f4", copy=False).tobytes()))


def packed(said: dict[str, Any], samples: bytes = b"") -> bytes:
    """An answer as one message."""
    head = json.dumps(said).encode()
    head += b" " * (-(_LENGTH.size + len(head)) % SAMPLES_AT)
    return _LENGTH.pack(len(head)) + head + samples


def unpacked(message: bytearray) -> tuple[dict[str, Any], Samples]:
    """What was packed, or ValueError."""
    (length,) = _LENGTH.unpack_from(message)
    begins = _LENGTH.size + length
    said = json.loads(message[_LENGTH.size : begins])
    if not isinstance(said, dict):
        raise ValueError("not an answer")
    return said, np.frombuffer(memoryview(message)[begins:], "<f4")


def _follow(descriptor: int) -> None:
    """End this process when the service is gone, also in the middle of a task that would never end."""
    ended = select.poll()
    ended.register(descriptor, 0)  # nothing but that the other end is closed
    ended.poll()
    os._exit(0)


def _limit(memory_mb: float) -> None:
    """As far as the platform knows these limits: no core, no file written, few open, so much more memory than now."""
    with contextlib.suppress(OSError):  # where memory runs out, a decoder goes before the service
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    import resource

    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 0, resource.RLIMIT_NOFILE: FILES}
    with contextlib.suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        limits[resource.RLIMIT_AS] = pages * resource.getpagesize() + int(memory_mb * 1e6)
    for limit, most in limits.items():
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(limit, (most, most))
