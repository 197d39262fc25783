"""A worker process: decodes, cuts and tokenizes the files it is told to, and sends back what is to be stored."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import numpy.typing as npt

from indexer.discover import Failure, FoundFile, hash_file
from indexer.intake import NewSegment
from indexer.keys import ngram_keys
from indexer.segment import Segment, Segmenter
from model import audio
from model.codebook import Codebook
from model.tokenizer import Device, Tokenizer

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Setup:
    """The first message: which tokenizer."""

    tokenizer_path: Path
    device: Device


@dataclass(frozen=True, eq=False)
class UseCodebook:
    """From here on, tokens are of this codebook; `classes` uint8 [K] are the coarse classes of its centroids."""

    codebook: Codebook
    classes: npt.NDArray[np.uint8]


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
    embeddings: Float32
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
    """What is to be stored of a file; `used` int64 [K] counts its tokens, `speech_tokens` those beginning in speech."""

    file: FoundFile
    sha256: str
    duration_s: float
    segments: list[NewSegment]
    speech_s: float
    speech_tokens: int
    used: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Ready:
    """The worker has its tokenizer."""


Task = Measure | Hear | Index
Result = Measured | Heard | Indexed | Failure


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

    def do(self, task: Task) -> Result:
        """The result of a task; whatever goes wrong with one file is a Failure of that file."""
        if isinstance(task, Measure):
            return Measured([_claimed_s(file.path) for file in task.files])
        try:
            if isinstance(task, Hear):
                return self.hear(task.file, task.stride, task.limit_s)
            return self.index(task.heard or self.hear(task.file))
        except (audio.AudioError, FileChanged, AudioTooShort) as error:
            return Failure(task.file.name, error.code, str(error))
        except OSError as error:
            return Failure(task.file.name, "audio_unreadable", f"cannot read the file: {error.strerror or error}")
        except Exception as error:
            traceback.print_exc()
            line = (str(error).strip().splitlines() or [""])[0]
            return Failure(task.file.name, "internal_error", f"{type(error).__name__}: {line}")

    def hear(self, file: FoundFile, stride: int = 1, limit_s: float = float("inf")) -> Heard:
        """Decode a file and embed its segments. Raises AudioError, AudioTooShort, FileChanged, OSError."""
        before = _stat(file.path)
        if before.st_size == 0:
            raise audio.AudioEmpty("the file is empty (0 bytes)")
        sha256 = hash_file(file.path)
        info = self.tokenizer.info
        cutter = Segmenter(info.left_context_samples, info.right_context_samples, self.tokenizer.frame_samples)
        parts: list[Part] = []
        held_s = 0.0
        whole = stride == 1
        segments = cutter.segments(audio.read_chunks(file.path))
        for number, segment in enumerate(segments):
            if number % stride:
                continue
            if held_s + segment.frames * info.frame_seconds > limit_s:
                whole = False
                break
            parts.append(self._embed(segment))
            held_s += segment.frames * info.frame_seconds
        after = _stat(file.path)
        if (before.st_size, before.st_mtime_ns, before.st_ino) != (after.st_size, after.st_mtime_ns, after.st_ino):
            raise FileChanged("the file was written to while it was being read")
        if cutter.total_samples < self.tokenizer.frame_samples:
            ms = cutter.total_samples * 1000.0 / audio.SAMPLE_RATE
            raise AudioTooShort(f"{ms:.0f} ms of sound, where at least {info.frame_seconds * 1000:.0f} ms are needed")
        file = FoundFile(file.name, file.path, before.st_size, before.st_mtime_ns)
        return Heard(file, sha256, cutter.total_samples / audio.SAMPLE_RATE, parts, whole)

    def _embed(self, segment: Segment) -> Part:
        embeddings = self.tokenizer.embed(segment.samples, segment.before, segment.after)
        return Part(segment.start_frame, embeddings, segment.speech)

    def index(self, heard: Heard) -> Indexed:
        """Tokens and keys of what was heard."""
        assert self.using is not None
        codebook, classes = self.using.codebook, self.using.classes
        frame_s = self.tokenizer.info.frame_seconds
        segments: list[NewSegment] = []
        used = np.zeros(codebook.size, np.int64)
        speech_frames = speech_tokens = 0
        end_frame = 0
        for part in heard.parts:
            start_s = part.start_frame * frame_s
            string = self.tokenizer.collapse(part.embeddings, codebook, start_s)
            keys = ngram_keys(string.ids, classes).tolist()
            segments.append(NewSegment(start_s, string.frames, string.to_bytes(), keys))
            overlap = end_frame - part.start_frame  # frames that the segment before has counted
            begins = string.boundaries[:-1]
            fresh = begins >= overlap
            speech_frames += int(part.speech[overlap:].sum())
            speech_tokens += int(part.speech[begins[fresh]].sum())
            used += np.bincount(string.ids[fresh], minlength=codebook.size)
            end_frame = part.start_frame + string.frames
        return Indexed(
            heard.file, heard.sha256, heard.duration_s, segments, speech_frames * frame_s, speech_tokens, used
        )


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise audio.AudioMissing(f"cannot read the file: {error.strerror or error}") from error


def _claimed_s(path: Path) -> float | None:
    try:
        return audio.duration_s(path)
    except audio.AudioError:
        return None


def main(descriptor: int) -> None:
    """Serve the coordinator at the other end of `descriptor` until it hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the coordinator decides
    connection: Connection = Connection(descriptor)
    worker = Worker(connection.recv())
    connection.send(Ready())
    # A thread reads ahead, so that neither side ever waits for the other to read while it writes itself.
    for message in _messages(connection):
        if isinstance(message, UseCodebook):
            worker.using = message
        else:
            connection.send(worker.do(message))


def _messages(connection: Connection) -> Iterator[Task | UseCodebook]:
    inbox: queue.SimpleQueue[Task | UseCodebook] = queue.SimpleQueue()

    def read() -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                inbox.put(connection.recv())
        os._exit(0)  # the coordinator is gone: nobody waits for what is being done

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield inbox.get()


if __name__ == "__main__":
    main(int(sys.argv[1]))
