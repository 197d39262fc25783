"""A radio station on this machine: encoded sound over HTTP, as fast as it is said, or faster."""

from __future__ import annotations

import io
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import av
import numpy as np

from model.audio import SAMPLE_RATE, Samples

FORMATS: dict[str, tuple[str, str, int, str, dict[str, str]]] = {  # name: container, codec, rate, media type, options
    "mp3": ("mp3", "libmp3lame", 44_100, "audio/mpeg", {"write_xing": "0", "id3v2_version": "0"}),
    "ogg": ("ogg", "libopus", 48_000, "application/ogg", {"page_duration": "200000"}),
    "aac": ("adts", "aac", 44_100, "audio/aac", {}),
}


@dataclass(frozen=True)
class Part:
    """Bytes of a stream, and the second of the sound at which they have all been said."""

    end_s: float
    data: bytes


@dataclass
class Station:
    """What is sent, and how far that has gone. A listener who comes again hears what follows.

    `speed` times as fast as it is said, but nothing after `until_s`; at the end the connection is held, or closed where
    it is to `end`; `sent_at` are moments of `time.monotonic` at which a part had been handed over.
    """

    parts: list[Part]
    media_type: str
    speed: float = 1.0
    end: bool = False
    head: bytes = b""  # what each connection begins with
    url: str = ""
    next_part: int = 0
    until_s: float = math.inf
    most_parts: int | None = None  # of one connection, which then ends
    connections: int = 0
    sent_at: list[float] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)

    @property
    def sent_s(self) -> float:
        """Seconds of sound that have been sent."""
        return self.parts[self.next_part - 1].end_s if self.next_part else 0.0

    def said_at(self, second: float) -> float:
        """The moment at which all up to that second of the sound had been sent."""
        return next(at for part, at in zip(self.parts, self.sent_at, strict=False) if part.end_s >= second)


def encoded(samples: Samples, name: str) -> list[Part]:
    """float32 [n] at 16 kHz in one of FORMATS, packet by packet."""
    container_format, codec, rate, _, options = FORMATS[name]
    sink = io.BytesIO()
    parts: list[Part] = []

    def take(until_s: float) -> None:
        if sink.tell():
            parts.append(Part(until_s, sink.getvalue()))
            sink.seek(0)
            sink.truncate()

    class Pipe:
        write = staticmethod(sink.write)

    with av.open(Pipe(), "w", format=container_format, options=options) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        stream.bit_rate = 64_000
        resampler = av.AudioResampler(stream.format, "mono", rate, stream.frame_size or 1_024)
        frame = av.AudioFrame.from_ndarray((np.clip(samples, -1, 1) * 32_767).astype(np.int16)[None], "s16", "mono")
        frame.sample_rate, frame.time_base = SAMPLE_RATE, Fraction(1, SAMPLE_RATE)
        said = 0
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            said += piece.samples
            container.mux(stream.encode(piece))
            take(said / rate)
        container.mux(stream.encode(None))
        take(said / rate)
    take(said / rate)
    return parts


@contextmanager
def on_air(station: Station) -> Iterator[Station]:
    """The station while it is on the air, with its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            station.connections += 1
            self.send_response(200)
            self.send_header("Content-Type", station.media_type)
            self.end_headers()
            self.wfile.write(station.head)
            began, first = time.monotonic(), station.next_part
            before_s = station.sent_s
            for number in range(first, len(station.parts)):
                part = station.parts[number]
                if station.most_parts is not None and number - first >= station.most_parts:
                    return
                while part.end_s > station.until_s and not station.closing.wait(0.02):
                    began += 0.02
                due = began + (part.end_s - before_s) / station.speed
                if station.closing.wait(max(0.0, due - time.monotonic())) or station.next_part != number:
                    return
                try:
                    self.wfile.write(part.data)
                    self.wfile.flush()
                except OSError:
                    return
                station.next_part = number + 1
                station.sent_at.append(time.monotonic())
            if not station.end:
                station.closing.wait()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    station.url = f"http://127.0.0.1:{server.server_port}/live"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield station
    finally:
        station.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()
