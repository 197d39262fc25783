"""What can be listened to: streams over HTTP, files that grow, and what FFmpeg opens."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.speed.radio import FORMATS, Part, Station, encoded, on_air
from indexer.live.decoding import SourceLost, Stopped, decoded
from indexer.live.sound import Int16, Place
from indexer.live.source import FileSource, HttpSource, OpenedSource, Source, SourceInvalid, source_of
from tests.indexer.sounds import babble

Answer = Callable[[BaseHTTPRequestHandler], None]


class Hearing(threading.Thread):
    """Listens, and holds what came; `ended` is what ended it."""

    def __init__(self, source: Source, heard: Place | None = None) -> None:
        super().__init__(daemon=True)
        self._source, self._heard = source, heard
        self.stop = threading.Event()
        self.blocks: list[Int16] = []
        self.places: list[Place | None] = []
        self.ended: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            for block, place in self._source.listen(self.stop, self._heard):
                self.blocks.append(block)
                self.places.append(place)
        except (SourceLost, Stopped) as error:
            self.ended = error

    @property
    def samples(self) -> Int16:
        return np.concatenate([np.zeros(0, np.int16), *self.blocks])

    def until(self, samples: int) -> None:
        deadline = time.monotonic() + 60
        while len(self.samples) < samples:
            assert time.monotonic() < deadline, len(self.samples)
            time.sleep(0.02)

    def finished(self) -> Int16:
        self.join(60)
        assert not self.is_alive()
        return self.samples


def whole(data: bytes) -> Int16:
    """What is heard where all of it is there at once."""
    return np.concatenate(list(decoded(io.BytesIO(data))))


@contextmanager
def answering(answers: dict[str, Answer]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answers[self.path](self)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def body(data: bytes, media_type: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", media_type)
        handler.end_headers()
        handler.wfile.write(data)

    return answer


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_stream_is_heard_as_it_comes(name: str) -> None:
    parts = encoded(babble(6.0), name)
    data = b"".join(part.data for part in parts)
    early = [part for part in parts if part.end_s < 4.0]
    with on_air(Station(early, FORMATS[name][3], speed=50.0)) as station:
        hearing = Hearing(source := source_of(station.url))
        hearing.until(int(16_000 * 3.5))  # of the four seconds that have been sent; the connection is open
        assert hearing.is_alive()
        hearing.stop.set()
        source.interrupt()
        hearing.finished()
        assert isinstance(hearing.ended, Stopped)
    with on_air(Station(parts, FORMATS[name][3], speed=50.0, end=True)) as station:
        hearing = Hearing(source_of(station.url))
        np.testing.assert_array_equal(hearing.finished(), whole(data))
        assert hearing.ended is None


def test_what_a_user_and_a_password_are_for() -> None:
    asked: list[str | None] = []
    data = b"".join(part.data for part in encoded(babble(1.0), "mp3"))

    def guarded(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.headers["Authorization"])
        body(data, "audio/mpeg")(handler)

    def elsewhere(handler: BaseHTTPRequestHandler) -> None:
        body(f"[playlist]\nFile1=http://{handler.headers['Host']}/live\n".encode(), "audio/x-scpls")(handler)

    answers = {"/live?token=hush": guarded, "/live": guarded, "/list.pls": elsewhere}
    with answering(answers) as url:
        source = source_of(url.replace("//", "//us%65r:s3cret@") + "/live?token=hush")
        assert len(Hearing(source).finished())
        assert asked == ["Basic dXNlcjpzM2NyZXQ="]
        assert source.label == url.replace("http://", "").replace(":", "-") + "-live"
        # A playlist's own address may know it, the one that it names may not.
        assert len(Hearing(source_of(url.replace("//", "//user:s3cret@") + "/list.pls")).finished())
        assert asked[1:] == [None]


def test_sources_that_are_lost(tmp_path: Path) -> None:
    def refused(handler: BaseHTTPRequestHandler) -> None:
        handler.send_error(404)

    answers = {
        "/404": refused,
        "/words": body(b"these are words, and not sound. " * 400, "audio/mpeg"),
        "/empty": body(b"", "audio/mpeg"),
        "/loop.m3u": lambda handler: body(f"http://{handler.headers['Host']}/loop.m3u".encode(), "audio/x-mpegurl")(
            handler
        ),
        "/none.m3u": body(b"# nothing\n", "audio/x-mpegurl"),
        "/hls": body(b"#EXTM3U\n#EXT-X-VERSION:3\nseg1.ts\n", "application/vnd.apple.mpegurl"),
    }
    with answering(answers) as url:
        for path, problem in {
            "/404": "404", "/words": "", "/empty": "", "/loop.m3u": "playlists that name",
            "/none.m3u": "names no stream", "/hls": "HLS",
        }.items():  # fmt: skip
            hearing = Hearing(source_of(url.replace("//", "//u:s3cret@") + path))
            assert len(hearing.finished()) == 0
            assert isinstance(hearing.ended, SourceLost)
            assert problem in str(hearing.ended)
            assert "s3cret" not in str(hearing.ended)
            assert "127" not in str(hearing.ended)
    for source in (source_of(url + "/404"), FileSource(tmp_path / "none"), OpenedSource("u:s3cret@none", None, "x")):
        hearing = Hearing(source)
        hearing.finished()
        assert isinstance(hearing.ended, SourceLost)
        assert "s3cret" not in str(hearing.ended)


@pytest.mark.parametrize("named", ["http://", "http:///x", "http://a:99999/", "ftp://a/b", "device:alsa", "device::x"])
def test_what_is_no_source(named: str) -> None:
    with pytest.raises(SourceInvalid):
        source_of(named)


def test_labels_are_fit_for_folders() -> None:
    assert source_of("https://Radio.example.org/a/b.mp3?key=x").label == "radio.example.org-a-b.mp3"
    assert source_of("http://[::1]:8000/").label == "1-8000"
    assert source_of("device:alsa:hw:1,0").label == "alsa-hw-1-0"
    assert source_of("rtsp://me:secret@cam.example.org:554/sound").label == "cam.example.org-554-sound"
    assert source_of("../ärger.wav").label == "rger.wav"
    assert source_of("...").label == "source"
    assert isinstance(source_of("http://example.org/x"), HttpSource)


def parts_of(seconds: float) -> tuple[list[Part], bytes]:
    parts = encoded(babble(seconds), "mp3")
    return parts, b"".join(part.data for part in parts)


def test_a_file_is_followed_from_where_it_was_left(tmp_path: Path) -> None:
    _, data = parts_of(6.0)
    path = tmp_path / "air.mp3"
    path.write_bytes(data[:20_000])
    expected = whole(data)
    hearing = Hearing(FileSource(path))
    hearing.until(16_000)
    with path.open("ab") as file:
        file.write(data[20_000:30_000])
    hearing.until(16_000 * 3)
    hearing.stop.set()
    heard = hearing.finished()
    assert isinstance(hearing.ended, Stopped)
    np.testing.assert_array_equal(heard, expected[: len(heard)])
    place = hearing.places[-1]
    assert place is not None
    reached = replace(place, samples=place.samples + len(hearing.blocks[-1]))
    assert reached.samples == len(heard)
    # Later, in another process: what has been heard is passed over.
    with path.open("ab") as file:
        file.write(data[30_000:])
    again = Hearing(FileSource(path, once=True), reached)
    np.testing.assert_array_equal(np.concatenate([heard, again.finished()]), expected)
    assert again.places[0] is not None
    assert again.places[0].samples == len(heard)
    # Another file of that name is heard from its beginning.
    os.rename(path, tmp_path / "old.mp3")
    path.write_bytes(data)
    np.testing.assert_array_equal(Hearing(FileSource(path, once=True), reached).finished(), expected)


def test_a_file_that_takes_another_ones_place_ends_that(tmp_path: Path) -> None:
    _, data = parts_of(3.0)
    path = tmp_path / "air.mp3"
    path.write_bytes(data[:10_000])
    hearing = Hearing(FileSource(path))
    hearing.until(8_000)
    os.rename(path, tmp_path / "air.mp3.1")
    time.sleep(0.3)
    with (tmp_path / "air.mp3.1").open("ab") as file:  # whoever writes it has it open still
        file.write(data[10_000:])
    hearing.until(16_000 * 2)
    path.write_bytes(b"")
    np.testing.assert_array_equal(hearing.finished(), whole(data))
    assert hearing.ended is None
    # One that is cut is another one, too.
    path.write_bytes(data)
    hearing = Hearing(FileSource(path))
    hearing.until(16_000 * 2)
    os.truncate(path, 100)
    hearing.finished()
    place = hearing.places[-1]
    assert place is not None
    path.write_bytes(data[:10_000])
    np.testing.assert_array_equal(Hearing(FileSource(path, once=True), place).finished(), whole(data[:10_000]))


def test_what_ffmpeg_makes_is_heard() -> None:
    tone = OpenedSource("sine=frequency=440:sample_rate=44100:duration=1", "lavfi", "tone")
    assert len(Hearing(tone).finished()) == 16_000
