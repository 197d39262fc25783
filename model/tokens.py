"""TokenString: the tokens of one segment, with durations and optional codes, and its binary form."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MAGIC = b"SGTS"
VERSION = 1
MAX_DURATION = 255  # frames in one run; a longer one repeats its id
_HEADER = struct.Struct("<4sBBxxIIdd")  # magic, version, code bytes a frame, tokens, frames, frame_seconds, offset


class TokenStringError(ValueError):
    """Bytes that are no token string: wrong magic, wrong version, wrong length, or lengths that disagree."""

    code = "token_string_invalid"


@dataclass(frozen=True, eq=False)
class TokenString:
    """Run-length-collapsed tokens of a stretch of sound.

    `ids` uint16 [tokens], `durations` uint8 [tokens] in frames, `frame_seconds` seconds a frame, `offset` seconds
    from the start of the recording to the first frame, `pq` uint8 [frames, code bytes] or None.
    """

    ids: npt.NDArray[np.uint16]
    durations: npt.NDArray[np.uint8]
    frame_seconds: float
    offset: float
    pq: npt.NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        if self.ids.shape != self.durations.shape or self.ids.ndim != 1:
            raise TokenStringError(f"{self.ids.shape} ids but {self.durations.shape} durations")
        if self.pq is not None and len(self.pq) != self.frames:
            raise TokenStringError(f"{self.frames} frames but codes for {len(self.pq)}")

    def __len__(self) -> int:
        return len(self.ids)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TokenString) and self.to_bytes() == other.to_bytes()

    def __hash__(self) -> int:
        return hash(self.to_bytes())

    @property
    def frames(self) -> int:
        """Length in frames."""
        return int(self.durations.sum(dtype=np.int64))

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return self.frames * self.frame_seconds

    @property
    def boundaries(self) -> npt.NDArray[np.int64]:
        """First frame of each token, then the end: int64 [tokens + 1]."""
        return np.concatenate([[0], np.cumsum(self.durations, dtype=np.int64)])

    @property
    def frame_ids(self) -> npt.NDArray[np.uint16]:
        """The token of every frame: uint16 [frames]."""
        return np.repeat(self.ids, self.durations)

    def part(self, start: int, stop: int) -> TokenString:
        """Frames [start, stop) alone; its offset is where they begin in the recording."""
        at = slice(start, stop)
        pq = None if self.pq is None else self.pq[at]
        return TokenString.from_frames(
            self.frame_ids[at], self.frame_seconds, self.offset + start * self.frame_seconds, pq
        )

    @classmethod
    def from_frames(
        cls,
        frame_ids: npt.NDArray[np.integer],
        frame_seconds: float,
        offset: float = 0.0,
        pq: npt.NDArray[np.uint8] | None = None,
    ) -> TokenString:
        """Collapse the runs of `frame_ids` [frames]."""
        ids = np.asarray(frame_ids)
        if len(ids) == 0:
            return cls(np.zeros(0, np.uint16), np.zeros(0, np.uint8), frame_seconds, offset, pq)
        starts = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))
        lengths = np.diff(np.concatenate([starts, [len(ids)]]))
        repeats = -(-lengths // MAX_DURATION)
        durations = np.full(int(repeats.sum()), MAX_DURATION, np.uint8)
        last = np.cumsum(repeats) - 1
        durations[last] = (lengths - (repeats - 1) * MAX_DURATION).astype(np.uint8)
        return cls(np.repeat(ids[starts], repeats).astype(np.uint16), durations, frame_seconds, offset, pq)

    def to_bytes(self) -> bytes:
        """Header, ids, durations, codes; little-endian."""
        width = 0 if self.pq is None else self.pq.shape[1]
        header = _HEADER.pack(MAGIC, VERSION, width, len(self), self.frames, self.frame_seconds, self.offset)
        codes = b"" if self.pq is None else self.pq.tobytes()
        return header + self.ids.astype("<u2").tobytes() + self.durations.tobytes() + codes

    @classmethod
    def from_bytes(cls, blob: bytes) -> TokenString:
        """The token string that `to_bytes` wrote. Raises TokenStringError, which says what was found."""
        if len(blob) < _HEADER.size:
            raise TokenStringError(f"{len(blob)} bytes are fewer than the header's {_HEADER.size}")
        magic, version, width, tokens, frames, frame_seconds, offset = _HEADER.unpack_from(blob)
        if magic != MAGIC:
            raise TokenStringError(f"the first bytes are {magic!r}, not {MAGIC!r}")
        if version != VERSION:
            raise TokenStringError(f"version {version}, where {VERSION} is known")
        expected = _HEADER.size + 3 * tokens + width * frames
        if len(blob) != expected:
            raise TokenStringError(f"{len(blob)} bytes, where the header asks for {expected}")
        ids = np.frombuffer(blob, "<u2", tokens, _HEADER.size)
        durations = np.frombuffer(blob, np.uint8, tokens, _HEADER.size + 2 * tokens)
        if int(durations.sum(dtype=np.int64)) != frames:
            raise TokenStringError(f"durations add up to {int(durations.sum(dtype=np.int64))} frames, not {frames}")
        pq = None
        if width:
            pq = np.frombuffer(blob, np.uint8, width * frames, _HEADER.size + 3 * tokens).reshape(frames, width)
        return cls(ids.astype(np.uint16, copy=False), durations, frame_seconds, offset, pq)
