"""What the coordinator and its worker processes say to each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from indexer.discover import Failure, FoundFile
from indexer.intake import NewSegment
from model.codebook import Codebook
from model.tokenizer import Device

STALLED = 75  # exit status of a worker whose file gave nothing for too long


@dataclass(frozen=True)
class Setup:
    """The first message: which tokenizer, and how much a worker may take.

    A file that gives no sound for `stall_s` seconds ends its worker, and so does a start of more than `start_s`;
    `memory_mb` are allowed beside what the worker holds when it is ready, on a CPU.
    """

    tokenizer_path: Path
    device: Device
    stall_s: float = 120.0
    memory_mb: float = 2_000.0
    start_s: float = 300.0


@dataclass(frozen=True, eq=False)
class UseCodebook:
    """From here on, tokens are of this codebook."""

    codebook: Codebook


@dataclass(frozen=True)
class Measure:
    """Read the durations that the containers of these files claim: Measured."""

    files: list[FoundFile]


@dataclass(frozen=True)
class Measured:
    """Seconds of each file, None where its container does not say."""

    durations_s: list[float | None]


@dataclass(frozen=True, eq=False)
class Part:
    """A segment, heard: unit embeddings float32 [frames, dim], and which frames are speech, bool [frames]."""

    start_frame: int
    embeddings: npt.NDArray[np.float32]
    speech: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Hear:
    """Embed every `stride`-th segment of a file, at most `limit_s` seconds in all: Heard."""

    file: FoundFile
    stride: int
    limit_s: float


@dataclass(frozen=True, eq=False)
class Heard:
    """Parts of a file; `whole` where nothing of it was left out. The file as it was when it was read."""

    file: FoundFile
    sha256: str
    duration_s: float
    parts: list[Part]
    whole: bool


@dataclass(frozen=True, eq=False)
class Index:
    """Tokenize a file, or what has been heard of all of it already: Indexed."""

    file: FoundFile
    heard: Heard | None = None


@dataclass(frozen=True, eq=False)
class Indexed:
    """What is to be stored of a file; `used` int64 [K] counts its tokens, `speech_tokens` those beginning in speech.

    `cosine` is the mean of its speech frames with the centroids of their tokens, 0 without speech.
    """

    file: FoundFile
    sha256: str
    duration_s: float
    segments: list[NewSegment]
    speech_s: float
    speech_tokens: int
    used: npt.NDArray[np.int64]
    cosine: float


@dataclass(frozen=True)
class Ready:
    """The worker has its tokenizer."""


@dataclass(frozen=True)
class Busy:
    """The worker is at a task, and something still comes of it."""


Task = Measure | Hear | Index
Result = Measured | Heard | Indexed | Failure
