"""A shard: the codes of some of an archive's recordings end to end, with the posting list of each token; one file.

What it holds is derived from the database and can be made anew at any time. A file is read by memory map, so that
the processes of one machine share it.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from model.tokens import TokenString

MAGIC = b"SGSH"
VERSION = 1
MAX_FRAMES = 1 << 21  # of one shard, 23 h: its votes fit a core's cache
SUFFIX = ".shard"
_HEADER = struct.Struct("<4sIII")  # magic, version, bytes of the description, its checksum
_ALIGN = 64  # bytes


class ShardError(ValueError):
    """A file that is no shard, is of another version, or is damaged."""

    code = "shard_invalid"


@dataclass(frozen=True)
class StoredSegment:
    """A segment as the database has it: `fingerprint` is the start of its recording's content hash."""

    recording_id: int
    fingerprint: int
    position: int
    tokens: TokenString


@dataclass(frozen=True, eq=False)
class Shard:
    """Codes of segments end to end; every array is read-only.

    By frame: `ids` uint16 [frames], `pq` uint8 [frames, M]. By segment: `recording` and `fingerprint` int64,
    `position` int32, `start_s` float64 [segments], `first` int64 [segments + 1], the frame where each begins. By
    token: `postings` uint32 [runs], the middle frames of its runs, from `lists` int64 [K + 1] on, ascending.
    """

    ids: npt.NDArray[np.uint16]
    pq: npt.NDArray[np.uint8]
    recording: npt.NDArray[np.int64]
    fingerprint: npt.NDArray[np.int64]
    position: npt.NDArray[np.int32]
    start_s: npt.NDArray[np.float64]
    first: npt.NDArray[np.int64]
    lists: npt.NDArray[np.int64]
    postings: npt.NDArray[np.uint32]
    frame_seconds: float

    def __post_init__(self) -> None:
        for array in self.arrays().values():
            array.flags.writeable = False

    @property
    def frames(self) -> int:
        """Of all segments."""
        return len(self.ids)

    @property
    def segments(self) -> int:
        """How many there are."""
        return len(self.recording)

    @property
    def codebook_size(self) -> int:
        """K."""
        return len(self.lists) - 1

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """All arrays by name."""
        return {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), np.ndarray)}

    def segment_of(self, frames: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The segment that each frame lies in; frames outside count to the first or the last."""
        found = np.searchsorted(self.first, frames, "right") - 1
        return np.clip(found, 0, self.segments - 1).astype(np.int64)

    def tokens(self, start: int, end: int, segment: int) -> TokenString:
        """Frames [start, end) of a segment as a token string."""
        offset = float(self.start_s[segment]) + (start - int(self.first[segment])) * self.frame_seconds
        pq = self.pq[start:end] if self.pq.shape[1] else None
        return TokenString.from_frames(self.ids[start:end], self.frame_seconds, offset, pq)

    def kept(self, alive: npt.NDArray[np.bool_]) -> Shard:
        """The same without the segments that are not `alive` bool [segments]."""
        lengths = np.diff(self.first)
        by_frame = np.repeat(alive, lengths)
        return assemble(
            self.ids[by_frame], self.pq[by_frame], self.recording[alive], self.fingerprint[alive],
            self.position[alive], self.start_s[alive], lengths[alive], self.codebook_size, self.frame_seconds,
        )  # fmt: skip


def build(segments: Sequence[StoredSegment], codebook_size: int, parts: int) -> Shard:
    """A shard of segments, in their order; `parts` is M. Raises ValueError where a token string has other codes."""
    strings = [segment.tokens for segment in segments]
    for string in strings:
        if (0 if string.pq is None else string.pq.shape[1]) < parts:
            raise ValueError(f"a token string has no codes of {parts} bytes a frame")
    ids = np.concatenate([np.zeros(0, np.uint16), *(string.frame_ids for string in strings)])
    codes = [string.pq for string in strings if string.pq is not None and parts]
    return assemble(
        ids,
        np.concatenate(codes) if codes else np.zeros((len(ids), 0), np.uint8),
        np.array([segment.recording_id for segment in segments], np.int64),
        np.array([segment.fingerprint for segment in segments], np.int64),
        np.array([segment.position for segment in segments], np.int32),
        np.array([string.offset for string in strings], np.float64),
        np.array([string.frames for string in strings], np.int64),
        codebook_size,
        strings[0].frame_seconds if strings else 0.0,
    )


def merge(shards: Sequence[Shard]) -> Shard:
    """One shard of all; they are of one codebook."""
    return assemble(
        np.concatenate([s.ids for s in shards]), np.concatenate([s.pq for s in shards]),
        np.concatenate([s.recording for s in shards]), np.concatenate([s.fingerprint for s in shards]),
        np.concatenate([s.position for s in shards]), np.concatenate([s.start_s for s in shards]),
        np.concatenate([np.diff(s.first) for s in shards]), shards[0].codebook_size, shards[0].frame_seconds,
    )  # fmt: skip


def assemble(
    ids: npt.NDArray[np.uint16],
    pq: npt.NDArray[np.uint8],
    recording: npt.NDArray[np.int64],
    fingerprint: npt.NDArray[np.int64],
    position: npt.NDArray[np.int32],
    start_s: npt.NDArray[np.float64],
    lengths: npt.NDArray[np.int64],
    codebook_size: int,
    frame_seconds: float,
) -> Shard:
    """A shard of these arrays, `lengths` int64 [segments] in frames; its posting lists are made here.

    Raises ValueError where an id is not below K.
    """
    if len(ids) and int(ids.max()) >= codebook_size:
        raise ValueError(f"a token {int(ids.max())} of a codebook of {codebook_size}")
    first = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    begins = np.zeros(len(ids) + 1, np.bool_)
    begins[first] = True
    begins[1:-1] |= ids[1:] != ids[:-1]
    bounds = np.flatnonzero(begins) if len(ids) else np.zeros(1, np.int64)
    middles = (bounds[:-1] + np.diff(bounds) // 2).astype(np.uint32)
    runs = ids[bounds[:-1]]
    lists = np.concatenate([[0], np.cumsum(np.bincount(runs, minlength=codebook_size))]).astype(np.int64)
    postings = np.empty(len(runs), np.uint32)
    _distribute(runs, middles, lists[:-1].copy(), postings)
    return Shard(ids, pq, recording, fingerprint, position, start_s, first, lists, postings, frame_seconds)


@numba.njit(nogil=True, cache=True)
def _distribute(
    runs: npt.NDArray[np.uint16],
    middles: npt.NDArray[np.uint32],
    ends: npt.NDArray[np.int64],
    postings: npt.NDArray[np.uint32],
) -> None:
    """A counting sort: `ends` int64 [K] is where the next posting of each token goes."""
    for run in range(len(runs)):
        token = runs[run]
        postings[ends[token]] = middles[run]
        ends[token] += 1


def save(shard: Shard, path: Path) -> None:
    """Write a shard to a file, whole or not at all. Raises OSError."""
    arrays: list[dict[str, Any]] = []
    at = checksum = 0
    for name, array in shard.arrays().items():
        array = np.ascontiguousarray(array)
        at = -(-at // _ALIGN) * _ALIGN
        arrays.append({"name": name, "dtype": array.dtype.str, "shape": array.shape, "at": at})
        at += array.nbytes
        checksum = zlib.crc32(_bytes(array), checksum)
    described = {"frame_seconds": shard.frame_seconds, "arrays": arrays, "bytes": at, "checksum": checksum}
    description = json.dumps(described).encode()
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(_HEADER.pack(MAGIC, VERSION, len(description), zlib.crc32(description)))
            file.write(description)
            start = _start(len(description))
            for entry, array in zip(arrays, shard.arrays().values(), strict=True):
                file.seek(start + entry["at"])
                file.write(_bytes(np.ascontiguousarray(array)))
            file.truncate(start + at)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load(path: Path) -> Shard:
    """The shard that `save` wrote, mapped into memory. Raises ShardError, OSError."""
    size = path.stat().st_size
    if size < _HEADER.size:
        raise ShardError(f"{path.name} has {size} bytes, fewer than a header's {_HEADER.size}")
    mapped = np.memmap(path, np.uint8, "r")
    magic, version, length, checksum = _HEADER.unpack(mapped[: _HEADER.size].tobytes())
    if magic != MAGIC or version != VERSION:
        raise ShardError(f"{path.name} is {magic!r} of version {version}, where {MAGIC!r} of {VERSION} is known")
    description = mapped[_HEADER.size : _HEADER.size + length].tobytes()
    if zlib.crc32(description) != checksum:
        raise ShardError(f"{path.name} is damaged: its description is not what its checksum says")
    described = json.loads(description)
    start = _start(length)
    if size != start + described["bytes"]:
        raise ShardError(f"{path.name} has {size} bytes, where it says {start + described['bytes']}")
    arrays: dict[str, npt.NDArray[Any]] = {}
    checksum = 0
    for entry in described["arrays"]:
        dtype, shape, at = np.dtype(entry["dtype"]), tuple(entry["shape"]), start + entry["at"]
        flat = mapped[at : at + int(np.prod(shape)) * dtype.itemsize]
        arrays[entry["name"]] = np.asarray(flat).view(dtype).reshape(shape)
        checksum = zlib.crc32(_bytes(arrays[entry["name"]]), checksum)
    if checksum != described["checksum"]:
        raise ShardError(f"{path.name} is damaged: its arrays are not what its checksum says")
    return Shard(frame_seconds=described["frame_seconds"], **arrays)


def _start(length: int) -> int:
    """Where the arrays begin behind a description of so many bytes."""
    return -(-(_HEADER.size + length) // _ALIGN) * _ALIGN


def _bytes(array: npt.NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
