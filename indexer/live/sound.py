"""The sound of a live recording: a FLAC file that is whole after each block, in whatever way its writer ends."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from indexer.discover import hash_file
from model import audio
from model.audio import SAMPLE_RATE

BLOCK_SAMPLES = 1_152  # 72 ms, the encoder's own choice: what a writer that is killed may lose
POSITION = ".position"  # in a source's folder: how far a file has been heard
LOCK = ".listening"  # in a source's folder: locked as long as somebody listens
_BITS = 16
_HEAD = b"fLaC" + bytes([0x80, 0, 0, 34])  # one block of metadata, the last: STREAMINFO, 34 bytes

Int16 = npt.NDArray[np.int16]


@dataclass(frozen=True)
class Place:
    """A place in a file that is listened to: `samples` of its sound come before it, and it has `bytes` at least.

    `file` tells files apart; it is empty for what cannot be read again.
    """

    file: str = ""
    samples: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class State:
    """A file as it was at a moment: its size, its time, and the hash of its content in hex."""

    bytes: int
    mtime_ns: int
    sha256: str


class LiveSound:
    """Writes 16 bits at 16 kHz, losslessly. Raises OSError, FileExistsError where there is a file of that name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.samples = 0  # in the file
        self._waiting: Int16 = np.zeros(0, np.int16)  # less than a block
        self._codec = av.CodecContext.create("flac", "w")
        self._codec.sample_rate, self._codec.layout, self._codec.format = SAMPLE_RATE, "mono", "s16"
        self._codec.options = {"frame_size": str(BLOCK_SAMPLES)}
        self._codec.open()
        self._digest, self._sound = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        self._smallest, self._largest = 0, 0  # bytes of a block
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        self.bytes = 0
        self._write(_HEAD + self._streaminfo(0, bytes(16)))

    def append(self, samples: Int16) -> Int16:
        """Take samples [n]; those that are in the file from now on, a whole number of blocks."""
        self._waiting = np.concatenate([self._waiting, samples])
        whole = len(self._waiting) // BLOCK_SAMPLES * BLOCK_SAMPLES
        done, self._waiting = self._waiting[:whole], self._waiting[whole:].copy()
        if len(done):
            self._write(b"".join(self._encoded(done[at : at + BLOCK_SAMPLES]) for at in range(0, whole, BLOCK_SAMPLES)))
            self._count(done)
        return done

    def close(self) -> Int16:
        """Write what is less than a block, and a header that tells the length; the samples that this adds [n]."""
        rest = self._waiting
        if len(rest):
            self._write(self._encoded(rest) + b"".join(bytes(packet) for packet in self._codec.encode(None)))
            self._count(rest)
        os.pwrite(self._file, self._streaminfo(self.samples, self._sound.digest()), len(_HEAD))
        os.fsync(self._file)
        os.close(self._file)
        return rest

    def state(self) -> State:
        """The file as it is, before it is closed."""
        return State(self.bytes, os.fstat(self._file).st_mtime_ns, self._digest.hexdigest())

    def _encoded(self, block: Int16) -> bytes:
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block)[None], "s16", "mono")
        frame.sample_rate = SAMPLE_RATE
        encoded = b"".join(bytes(packet) for packet in self._codec.encode(frame))
        if encoded:
            self._smallest = min(self._smallest or len(encoded), len(encoded))
            self._largest = max(self._largest, len(encoded))
        return encoded

    def _write(self, data: bytes) -> None:
        written = 0
        while written < len(data):
            written += os.write(self._file, data[written:])
        self._digest.update(data)
        self.bytes += len(data)

    def _count(self, samples: Int16) -> None:
        self.samples += len(samples)
        self._sound.update(samples.astype("<i2").tobytes())

    def _streaminfo(self, samples: int, md5: bytes) -> bytes:
        """Sizes of blocks and frames, rate, channels, bits, length (0: unknown), hash of the sound."""
        packed = BLOCK_SAMPLES
        for value, bits in (
            (BLOCK_SAMPLES, 16), (self._smallest, 24), (self._largest, 24),
            (SAMPLE_RATE, 20), (0, 3), (_BITS - 1, 5), (samples, 36),
        ):  # fmt: skip
            packed = packed << bits | value
        return packed.to_bytes(18, "big") + md5


def settle(path: Path) -> None:
    """Have what was written on the disk, so that it is there after a power cut. Raises OSError."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def state_of(path: Path) -> State:
    """A file as it is. Raises OSError."""
    about = path.stat()
    return State(about.st_size, about.st_mtime_ns, hash_file(path))


def finish(path: Path) -> int:
    """Make a file whole whose writer was killed: up to its last whole block; its samples.

    A file without one whole block goes: 0. Raises OSError.
    """
    new = path.with_suffix(".partial")
    new.unlink(missing_ok=True)
    sound = LiveSound(new)
    try:
        with contextlib.suppress(audio.AudioError):
            for chunk in audio.read_chunks(path):
                sound.append(np.round(chunk * 32_768.0).astype(np.int16))
    finally:
        sound.close()
    new.replace(path) if sound.samples else new.unlink()
    if not sound.samples:
        path.unlink(missing_ok=True)
    return sound.samples


def mark(path: Path, place: Place) -> None:
    """Note that a file is not finished, or not stored: whoever comes after a crash looks for the mark."""
    write_whole(mark_of(path), json.dumps(asdict(place)))


def marked(folder: Path) -> list[tuple[Path, Place]]:
    """Files of a folder that are not finished, or not stored, by name."""
    return [(path, read_place(mark_of(path)) or Place()) for path in sorted(map(_of_mark, folder.glob(".*.open")))]


def mark_of(path: Path) -> Path:
    """Where the mark of a file is."""
    return path.with_name(f".{path.name}.open")


def _of_mark(mark: Path) -> Path:
    return mark.with_name(mark.name[1 : -len(".open")])


def is_growing(path: Path) -> bool:
    """Whether somebody is at a file who has not finished it."""
    if not mark_of(path).exists():
        return False
    with contextlib.suppress(OSError), (path.parent / LOCK).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Make a source's folder, and be the only one who listens to it, however that ends; False where somebody is."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def read_place(path: Path) -> Place | None:
    """What `write_whole` wrote of a `Place`, or None where there is nothing that can be read."""
    try:
        return Place(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write_whole(path: Path, content: str) -> None:
    """Write a small file so that nobody ever sees a part of it."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(content, encoding="utf-8")
    partial.replace(path)
