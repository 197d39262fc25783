"""Any audio file or bytes in, mono float32 samples at 16 kHz out, in chunks of bounded size."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import av
import av.subtitles.stream  # PyAV loads it at the first file, when its reader may have next to no memory left
import numpy as np
import numpy.typing as npt

SAMPLE_RATE = 16_000  # Hz, of everything after this module
CHUNK_SAMPLES = 10 * SAMPLE_RATE  # 10 s a chunk: large enough to be fast, small enough to forget
NEAR_S = 10.0  # so near to the beginning, a stretch is read from there
SETTLE_S = 1.0  # of sound before a stretch, which a decoder needs after a jump

Samples = npt.NDArray[np.float32]
Source = str | os.PathLike[str] | bytes | BinaryIO


class AudioError(Exception):
    """Sound that cannot be had.

    AudioError
    ├── AudioMissing      no such file, or it may not be read
    ├── AudioEmpty        nothing in it: no bytes, no audio stream, or no samples
    └── AudioUndecodable  bytes that no decoder understands
    """

    code = "audio_error"


class AudioMissing(AudioError):
    """The file is not there or may not be read."""

    code = "audio_unreadable"


class AudioEmpty(AudioError):
    """There is no audio in it."""

    code = "audio_empty"


class AudioUndecodable(AudioError):
    """The bytes are not audio that can be decoded."""

    code = "audio_undecodable"


def _open(source: Source) -> av.container.InputContainer:
    if isinstance(source, bytes):
        if not source:
            raise AudioEmpty("the audio is empty (0 bytes)")
        source = io.BytesIO(source)
    elif isinstance(source, str | os.PathLike):
        path = Path(source)
        try:
            size = path.stat().st_size
            with path.open("rb"):
                pass
        except OSError as error:
            raise AudioMissing(f"cannot read the file: {error.strerror or error}") from error
        if size == 0:
            raise AudioEmpty("the file is empty (0 bytes)")
        # The file: prefix keeps names with colons or protocol-like beginnings away from FFmpeg's protocols.
        source = "file:" + os.fspath(path)
    try:
        # Only the named container is read: playlists and other formats that open further files are refused.
        return av.open(source, mode="r", metadata_errors="replace", options={"protocol_whitelist": "file,pipe"})
    except (av.FFmpegError, ValueError) as error:
        raise AudioUndecodable("not audio that can be decoded") from error


def duration_s(source: Source) -> float | None:
    """Duration in seconds as the container's header claims it, or None where it says nothing.

    Cheap (no decoding) and only an estimate: use it for progress, never for results.
    Raises AudioError like `read_chunks`.
    """
    with _open(source) as container:
        if not container.streams.audio:
            raise AudioEmpty("there is no audio stream in it")
        if container.duration is not None and container.duration > 0:
            return float(container.duration / av.time_base)
        stream = container.streams.audio[0]
        if stream.duration is not None and stream.time_base is not None:
            return float(stream.duration * stream.time_base)
        return None


def read_chunks(source: Source, chunk_samples: int = CHUNK_SAMPLES) -> Iterator[Samples]:
    """Decode `source`, mix it to mono, resample to 16 kHz, and yield float32 arrays [<= chunk_samples].

    All chunks but the last have exactly `chunk_samples` samples. Memory does not grow with the length of
    the recording. A recording that breaks off is decoded up to the break.

    Raises AudioMissing, AudioEmpty (no stream, or not one sample), AudioUndecodable.
    """
    with _open(source) as container:
        if not container.streams.audio:
            raise AudioEmpty("there is no audio stream in it")
        parts: list[Samples] = []
        held = 0
        total = 0
        for block in _mixed(_decoded_frames(container)):
            parts.append(block)
            held += len(block)
            total += len(block)
            if held >= chunk_samples:
                joined = np.concatenate(parts)
                whole = held - held % chunk_samples
                for start in range(0, whole, chunk_samples):
                    yield joined[start : start + chunk_samples]
                parts, held = [joined[whole:].copy()], held - whole
        if total == 0:
            raise AudioEmpty("there is not one sample of audio in it")
        if held:
            yield np.concatenate(parts)


def read_between(source: Source, start_s: float, end_s: float) -> Samples:
    """What `read` would give from `start_s` to `end_s`, or as much of it as there is: float32 [samples].

    Goes straight to the place where the container can. That is exact to some milliseconds, or as exact as the
    container's times are: sound that is missing in the middle is missing in the samples, not in the times.
    Raises AudioError like `read_chunks`.
    """
    if start_s > NEAR_S:
        with _open(source) as container:
            found = _read_sought(container, start_s, end_s)
        if found is not None:
            return found
    low, high = round(start_s * SAMPLE_RATE), int(end_s * SAMPLE_RATE)
    parts: list[Samples] = []
    total = 0
    for chunk in read_chunks(source):
        if total + len(chunk) > low:  # an empty slice would keep all of its chunk in memory
            parts.append(chunk[max(0, low - total) : max(0, high - total)])
        total += len(chunk)
        if total >= high:
            break
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def _read_sought(container: av.container.InputContainer, start_s: float, end_s: float) -> Samples | None:
    """A stretch after a seek; None where the container cannot tell where it is."""
    if not container.streams.audio:
        raise AudioEmpty("there is no audio stream in it")
    stream = container.streams.audio[0]
    if stream.time_base is None:
        return None
    zero_s = float((stream.start_time or 0) * stream.time_base)
    try:
        container.seek(int((zero_s + start_s - SETTLE_S) / stream.time_base), stream=stream)
        frames = _decoded_frames(container)
        frame = next(frames, None)
        if frame is None or frame.time is None:
            return None
        began = round((frame.time - zero_s) * SAMPLE_RATE)
        low, high = round(start_s * SAMPLE_RATE) - began, round(end_s * SAMPLE_RATE) - began
        if low < 0:
            return None
        parts: list[Samples] = []
        held = 0
        for block in _mixed(chain([frame], frames)):
            parts.append(block)
            held += len(block)
            if held >= high:
                break
    except (av.FFmpegError, AudioError):
        return None
    return np.concatenate(parts)[low:high] if parts else None


def _decoded_frames(container: av.container.InputContainer) -> Iterator[av.AudioFrame]:
    """Frames as they come; what is broken on the way is left out, and the recording ends where it breaks off."""
    stream = container.streams.audio[0]
    decoded = 0
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
            frames = packet.decode()
        except StopIteration:
            break
        except av.InvalidDataError:
            continue  # one broken packet; a broken header has failed before, or leaves nothing decoded
        except (av.FFmpegError, MemoryError) as error:
            if decoded:
                break
            raise AudioUndecodable("not audio that can be decoded") from error
        for frame in frames:
            decoded += frame.samples
            yield frame
    if decoded == 0 and container.size > 0 and stream.codec_context is not None and stream.frames != 0:
        raise AudioUndecodable("not one packet of it could be decoded")


def _mixed(frames: Iterable[av.AudioFrame]) -> Iterator[Samples]:
    """Mono float32 blocks at 16 kHz, finite and within [-1, 1]."""
    mixer = _Mixer()
    for frame in frames:
        yield from mixer.take(frame)
    yield from mixer.finish()


class _Mixer:
    """Mixes to mono and resamples, a second or so at a time: codecs hand out 20 ms, and every call has its price."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._shape: tuple[str, int, str] | None = None
        self._fifo = av.AudioFifo()
        self._resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)

    def take(self, frame: av.AudioFrame) -> Iterator[Samples]:
        """Take a decoded frame; what is ready comes out."""
        shape = (frame.format.name, frame.sample_rate, frame.layout.name)
        if shape != self._shape:
            # Some streams change rate or channels on the way: finish with the old ones, start anew.
            yield from self.finish()
            self._shape = shape
        frame.pts = None
        self._fifo.write(frame)
        while self._fifo.samples >= frame.sample_rate:  # no more at once: a frame at 1 Hz may be a day
            yield from self._resample(self._fifo.read(frame.sample_rate))

    def finish(self) -> Iterator[Samples]:
        """All that is still inside."""
        if self._shape is not None:
            if self._fifo.samples:
                yield from self._resample(self._fifo.read())
            yield from self._resample(None)
            self._start()

    def _resample(self, frame: av.AudioFrame | None) -> Iterator[Samples]:
        for resampled in self._resampler.resample(frame):
            block = resampled.to_ndarray().reshape(-1).astype(np.float32, copy=False)
            if not np.isfinite(block).all():
                block = np.nan_to_num(block, nan=0.0, posinf=1.0, neginf=-1.0)
            yield np.clip(block, -1.0, 1.0)


def read(source: Source, max_s: float | None = None) -> Samples:
    """All of `source` as one float32 array [samples] at 16 kHz, at most `max_s` seconds of it.

    Raises AudioError like `read_chunks`.
    """
    limit = None if max_s is None else int(max_s * SAMPLE_RATE)
    chunks: list[Samples] = []
    held = 0
    for chunk in read_chunks(source):
        chunks.append(chunk)
        held += len(chunk)
        if limit is not None and held >= limit:
            break
    samples = np.concatenate(chunks)
    return samples if limit is None else samples[:limit]
