"""Sound out of a stream as it comes: 16 bits at 16 kHz, mono, as soon as there is any."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import av
import numpy as np

from indexer.live.sound import Int16
from model.audio import SAMPLE_RATE

# A stream is looked at no longer than this before its sound comes: in bytes, and in microseconds of sound.
LOOK = {"probesize": "65536", "analyzeduration": "500000"}
ENDLESS = {"ignore_length": "1"}  # what the header of a WAV file says of its length, which is written last
READ_BYTES = 4_096  # asked for at a time: a quarter of a second of 128 kbit/s
OPEN_S, READ_S = 10.0, 15.0  # that something which FFmpeg reads itself may take to answer, and be silent
_FORMATS = {  # by the media type that a server tells
    "audio/mpeg": "mp3", "audio/mp3": "mp3", "audio/aac": "aac", "audio/aacp": "aac", "audio/ogg": "ogg",
    "application/ogg": "ogg", "audio/opus": "ogg", "audio/flac": "flac", "audio/x-flac": "flac",
}  # fmt: skip


class SourceLost(Exception):
    """Nothing comes from a source, or nothing that can be heard; it may come later."""

    code = "source_lost"


class Stopped(Exception):
    """Nobody listens any more."""


class Bytes(Protocol):
    """Gives up to `size` bytes as soon as there are any, none at the end."""

    def read(self, size: int) -> bytes:
        """Some bytes."""


def format_of(media_type: str) -> str | None:
    """FFmpeg's name of the format that a media type tells, None where it tells nothing."""
    return _FORMATS.get(media_type.partition(";")[0].strip().lower())


def decoded(source: Bytes | str, container_format: str | None = None, *, endless: bool = True) -> Iterator[Int16]:
    """Samples [n] of a stream of bytes, or of what FFmpeg opens by that name, in the order in which they come.

    `endless` is what is still being written: its header does not know how long it is. What is broken on the way is left
    out. Raises SourceLost; what `source` raises, before what it gave last is heard.
    """
    options, timeout = LOOK | (ENDLESS if endless else {}), None
    if isinstance(source, str):
        timeout = (OPEN_S, READ_S)
    else:
        options["protocol_whitelist"] = "pipe"  # a playlist in the stream opens nothing
    try:
        container = av.open(
            source, "r", format=container_format, options=options, timeout=timeout, buffer_size=READ_BYTES,
            metadata_errors="replace",
        )  # fmt: skip
    except (av.FFmpegError, ValueError, OSError) as error:
        raise SourceLost(_plain(error)) from None
    with container:
        if not container.streams.audio:
            raise SourceLost("there is no audio in it")
        mixer, heard = _Mixer(), False
        try:
            for frame in _frames(container):
                heard = True
                yield from mixer.take(frame)
        except (av.FFmpegError, OSError) as error:
            raise SourceLost(_plain(error)) from None
        if not heard:
            raise SourceLost("nothing of it can be decoded as it comes")
        yield from mixer.finish()


def _frames(container: av.container.InputContainer) -> Iterator[av.AudioFrame]:
    packets = container.demux(container.streams.audio[0])
    while True:
        try:
            packet = next(packets)
            frames = packet.decode()
        except (StopIteration, av.EOFError):
            return
        except av.InvalidDataError:
            continue
        yield from frames


def _plain(error: BaseException) -> str:
    """What is wrong, without the address: that may hold a password."""
    if isinstance(error, av.InvalidDataError):
        return "not audio that can be decoded"
    return getattr(error, "strerror", None) or type(error).__name__


class _Mixer:
    """Mixes to mono and resamples each frame at once: `model.audio` waits for a second of them."""

    def __init__(self) -> None:
        self._shape: tuple[str, int, str] | None = None
        self._resampler: av.AudioResampler | None = None

    def take(self, frame: av.AudioFrame) -> Iterator[Int16]:
        """Take a decoded frame; what is ready comes out."""
        shape = (frame.format.name, frame.sample_rate, frame.layout.name)
        if shape != self._shape:  # some streams change on the way
            yield from self.finish()
            self._shape = shape
            self._resampler = av.AudioResampler("s16", "mono", SAMPLE_RATE)
        frame.pts = None
        yield from self._resample(frame)

    def finish(self) -> Iterator[Int16]:
        """What is still inside."""
        if self._resampler is not None:
            yield from self._resample(None)
            self._resampler = self._shape = None

    def _resample(self, frame: av.AudioFrame | None) -> Iterator[Int16]:
        assert self._resampler is not None
        for resampled in self._resampler.resample(frame):
            yield np.asarray(resampled.to_ndarray().reshape(-1), np.int16)
