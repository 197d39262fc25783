"""The sound of indexed recordings: read from where their files were, as long as these are as they were indexed."""

from __future__ import annotations

import io
import mimetypes
import os
import wave
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from indexer.discover import written_ns
from indexer.live.sound import is_growing
from indexer.recordings import RecordingInfo
from indexer.sources import Url, place
from model import audio
from model.audio import SAMPLE_RATE, AudioError, Samples
from model.frontend import mel_bank
from service.borrowed import borrow
from service.errors import AudioGone, BadStretch

FFT = 512  # 32 ms
HOP_S = 0.01
MELS = 80
RANGE_DB = 70.0  # of a spectrogram, below its loudest spot

Uint8 = npt.NDArray[np.uint8]
Reader = Callable[[Path, float, float], Samples]  # what reads a stretch of a file: audio.read_between, or its like


def path_of(recording: RecordingInfo) -> Path:
    """The file of a recording. Raises AudioGone where it is not what was indexed, as far as its size and time tell."""
    path = place(recording.path)
    if isinstance(path, Url):
        try:
            return borrow(path, recording.bytes, recording.mtime_ns)
        except AudioError as error:
            raise AudioGone(f"the sound of {recording.name!r} cannot be had from {path}: {error}") from error
    try:
        about = os.stat(path)
    except (OSError, ValueError) as error:
        raise AudioGone(f"the file of {recording.name!r} is not where it was when it was indexed") from error
    if is_growing(path) and about.st_size >= recording.bytes:
        return path  # what has been stored of it stays
    if (about.st_size, written_ns(about)) != (recording.bytes, recording.mtime_ns):
        raise AudioGone(f"the file of {recording.name!r} has changed since it was indexed")
    return path


def media_type(path: Path) -> str:
    """That of sound by the file's name; anything else is no more than bytes to a browser."""
    guessed = mimetypes.guess_type(path.name)[0] or ""
    return guessed if guessed.startswith(("audio/", "video/")) else "application/octet-stream"


def between(recording: RecordingInfo, start_s: float, end_s: float, read: Reader = audio.read_between) -> Samples:
    """Mono float32 [samples] at 16 kHz of a stretch, as much of it as there is. Raises AudioGone, or as `read` does."""
    path = path_of(recording)
    try:
        return read(path, start_s, end_s)
    except AudioError as error:
        raise AudioGone(f"the file of {recording.name!r} cannot be read any more: {error}") from error


def stretch_of(
    recording: RecordingInfo,
    start_s: float,
    end_s: float | None,
    longest_s: float,
    read: Reader = audio.read_between,
) -> Samples:
    """A stretch that somebody asks for, up to the recording's end by default. Raises BadStretch, and as `between`."""
    last_s = recording.duration_s if end_s is None else min(end_s, recording.duration_s)
    if last_s <= start_s:
        raise BadStretch(f"no stretch begins at {start_s:g} s and ends at {last_s:g} s", "end")
    if last_s - start_s > longest_s:
        raise BadStretch(f"{last_s - start_s:.0f} s are asked for, where {longest_s:g} s are allowed", "end")
    samples = between(recording, start_s, last_s, read)
    if len(samples) == 0:
        raise BadStretch(f"there is no sound from {start_s:g} s on in {recording.name!r}", "start")
    return samples


def wav(samples: Samples) -> bytes:
    """A WAV file, 16 bits at 16 kHz."""
    held = io.BytesIO()
    with wave.open(held, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(np.round(np.clip(samples, -1.0, 1.0) * 32_767.0).astype("<i2").tobytes())
    return held.getvalue()


def peaks(samples: Samples, points: int) -> list[tuple[float, float]]:
    """The lowest and the highest sample of each of so many equal parts, or of each sample where there are fewer."""
    edges = np.unique(np.linspace(0, len(samples), points + 1).astype(np.int64))
    low, high = np.minimum.reduceat(samples, edges[:-1]), np.maximum.reduceat(samples, edges[:-1])
    return [(round(float(a), 4), round(float(b), 4)) for a, b in zip(low, high, strict=True)]


def spectrogram(samples: Samples, width: int, height: int) -> bytes:
    """A log-mel spectrogram as PNG, black where it is loud; low frequencies are at the bottom."""
    padded = np.pad(samples, FFT // 2)
    frames = min(width, max(2, round(len(samples) / SAMPLE_RATE / HOP_S)))
    starts = np.linspace(0, len(padded) - FFT, frames).astype(np.int64)
    windows = padded[starts[:, None] + np.arange(FFT)] * np.hanning(FFT)
    energy = np.abs(np.fft.rfft(windows)) ** 2 @ mel_bank(MELS, FFT, 0.0, SAMPLE_RATE / 2).T
    decibels = 10.0 * np.log10(np.maximum(energy, 1e-10))
    dark = np.clip(1.0 + (decibels - decibels.max()) / RANGE_DB, 0.0, 1.0)
    rows = np.linspace(MELS - 1, 0, height).round().astype(np.int64)
    columns = np.linspace(0, frames - 1, width).round().astype(np.int64)
    return _png(np.round(255.0 * (1.0 - dark[columns][:, rows].T)).astype(np.uint8))


def _png(grey: Uint8) -> bytes:
    """[height, width] as a PNG file."""
    height, width = grey.shape
    codec = av.VideoCodecContext.create("png", "w")
    codec.width, codec.height, codec.pix_fmt = width, height, "gray"
    codec.framerate = Fraction(1)  # a picture has one too
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(grey), "gray")
    return b"".join(bytes(packet) for packet in [*codec.encode(frame), *codec.encode(None)])
