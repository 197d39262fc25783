"""What a run tells while it goes on, and what it reports in the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from indexer.discover import Failure
from indexer.messages import Indexed


@dataclass(frozen=True)
class Progressed:
    """Where a run is: what it is doing, seconds of audio done and in all (0 where it is not known), files failed."""

    stage: str
    done_s: float
    total_s: float
    wall_s: float
    failed: int


@dataclass(frozen=True)
class IndexReport:
    """What a run did.

    `moved` counts recordings whose file lies elsewhere now, or has another name; `removed` are the names of those that
    went since their file is gone.
    `audio_s`, `speech_s`, `tokens` and `tokens_per_s` (tokens that begin in speech, a second of speech) are of the
    files indexed by this run; `entropy` is that of their tokens as a part of log K, `cosine` the mean of their speech
    frames with the centroids of their tokens. `archive_s`, `bytes` and `bytes_per_hour` (rows with their indexes and
    the tables' overhead; the codebook apart) are of the whole archive, which has `outgrown` its codebook where a new
    fit would pay. It has `drifted` from it where these files sound unlike what it was fitted to.
    """

    archive: str
    found: int
    indexed: int
    unchanged: int
    moved: int
    removed: list[str]
    failed: list[Failure]
    audio_s: float
    speech_s: float
    tokens: int
    tokens_per_s: float
    wall_s: float
    entropy: float
    codebook_kind: str
    codebook_size: int
    codebook_bytes: int
    archive_s: float
    bytes: int
    outgrown: bool = False
    cosine: float = 0.0
    drifted: bool = False

    @property
    def times_real_time(self) -> float:
        """Seconds of audio indexed in a second, everything included."""
        return self.audio_s / self.wall_s if self.wall_s > 0 else 0.0

    @property
    def bytes_per_hour(self) -> float:
        """Bytes on disk for an hour of the archive."""
        return self.bytes / self.archive_s * 3600.0 if self.archive_s > 0 else 0.0

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON."""
        return {
            "archive": self.archive,
            "files": self.found,
            "indexed": self.indexed,
            "unchanged": self.unchanged,
            "moved": self.moved,
            "removed": self.removed,
            "failed": [vars(failure) for failure in self.failed],
            "audio_s": round(self.audio_s, 3),
            "speech_s": round(self.speech_s, 3),
            "tokens": self.tokens,
            "tokens_per_s": round(self.tokens_per_s, 3),
            "wall_s": round(self.wall_s, 3),
            "times_real_time": round(self.times_real_time, 1),
            "bytes_per_hour": round(self.bytes_per_hour),
            "codebook": {
                "kind": self.codebook_kind,
                "size": self.codebook_size,
                "entropy": round(self.entropy, 4),
                "cosine": round(self.cosine, 4),
                "outgrown": self.outgrown,
                "drifted": self.drifted,
            },
        }


@dataclass
class Run:
    """Counters of a run."""

    progress: Callable[[Progressed], None] | None
    started: float = field(default_factory=time.perf_counter)
    failed: list[Failure] = field(default_factory=list)
    indexed: int = 0
    audio_s: float = 0.0
    speech_s: float = 0.0
    speech_tokens: int = 0
    cosines_s: float = 0.0  # cosine times seconds of speech
    used: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def wall_s(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self.started

    def tell(self, stage: str, done_s: float, total_s: float) -> None:
        """Say where the run is."""
        if self.progress is not None:
            self.progress(Progressed(stage, done_s, total_s, self.wall_s, len(self.failed)))

    def count(self, result: Indexed) -> None:
        """Count a file that has been stored."""
        self.indexed += 1
        self.audio_s += result.duration_s
        self.speech_s += result.speech_s
        self.speech_tokens += result.speech_tokens
        self.cosines_s += result.cosine * result.speech_s
        self.used = result.used if len(self.used) == 0 else self.used + result.used

    @property
    def cosine(self) -> float:
        """Mean of the speech frames so far with the centroids of their tokens; 0 without speech."""
        return self.cosines_s / self.speech_s if self.speech_s > 0 else 0.0

    @property
    def entropy(self) -> float:
        """Of the tokens so far, as a part of log K."""
        if len(self.used) < 2 or self.used.sum() == 0:
            return 0.0
        shares = self.used[self.used > 0] / self.used.sum()
        return float(-(shares * np.log(shares)).sum() / np.log(len(self.used)))
