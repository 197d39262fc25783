"""What can be listened to: a stream over HTTP, a file that grows, and whatever FFmpeg opens, devices among it."""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit, urlunsplit

import httpx

from indexer.live.decoding import OPEN_S, READ_S, SourceLost, Stopped, decoded, format_of
from indexer.live.sound import Int16, Place

POLL_S = 0.1  # between two looks at a file that has not grown
MOST_PLAYLISTS = 3  # one after another, before there is sound
PLAYLIST_BYTES = 65_536
LABEL_BYTES = 150  # of a source's name
_SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp", "srt", "tcp", "mms", "mmsh")  # that FFmpeg reads
_PLAYLISTS = ("mpegurl", "x-scpls", "scpls", "pls+xml")

Sounds = Iterator[tuple[Int16, Place | None]]


class SourceInvalid(Exception):
    """Nothing that can be listened to."""

    code = "source_invalid"


class Source(Protocol):
    """Something to listen to; `label` names it without anything secret, and is fit for a folder's name."""

    label: str

    def listen(self, stop: threading.Event, heard: Place | None) -> Sounds:
        """Samples [n] as they come, with where they begin in a file; it ends where the source does, or goes on anew.

        `heard` is how far a file has been heard already. Raises SourceLost; Stopped soon after `stop` is set.
        """

    def interrupt(self) -> None:
        """Let a wait for more end, as far as that can be."""


def source_of(named: str, *, once: bool = False) -> Source:
    """What a name stands for: http(s)://…, rtsp://… and the like, device:FORMAT:NAME, or a file; `once` to its end.

    Raises SourceInvalid.
    """
    scheme = named.partition(":")[0].lower() if "://" in named else ""
    if scheme in ("http", "https"):
        return HttpSource(named)
    if scheme in _SCHEMES:
        return OpenedSource(named, None, _url_label(named))
    if scheme:
        raise SourceInvalid(f"{scheme}:// cannot be listened to: http, https or one of {', '.join(_SCHEMES)}")
    if named.startswith("device:"):
        _, _, rest = named.partition(":")
        container_format, _, name = rest.partition(":")
        if not container_format or not name:
            raise SourceInvalid("a device is named device:FORMAT:NAME, such as device:alsa:default")
        return OpenedSource(name, container_format, label_of(f"{container_format}-{name}"))
    return FileSource(Path(os.path.abspath(named)), once=once)


class HttpSource:
    """An endless answer over HTTP, or what a playlist names. User and password are told to the server alone."""

    def __init__(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            self._auth = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
            bare = parts.hostname and (f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname)
            if not bare:
                raise SourceInvalid("the URL has no host")
            port = "" if parts.port is None else f":{parts.port}"
        except ValueError as error:
            raise SourceInvalid("the URL cannot be read") from error
        self._url = urlunsplit((parts.scheme, bare + port, parts.path or "/", parts.query, ""))
        self.label = _url_label(url)
        self._socket: socket.socket | None = None

    def listen(self, stop: threading.Event, heard: Place | None) -> Sounds:
        """See Source."""
        timeout = httpx.Timeout(READ_S, connect=OPEN_S)
        headers = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "sayagain"}
        url = self._url
        try:
            with httpx.Client(timeout=timeout, headers=headers, follow_redirects=True) as client:
                for _ in range(MOST_PLAYLISTS + 1):
                    with client.stream("GET", url, auth=self._auth if url == self._url else None) as response:
                        self._socket = response.extensions["network_stream"].get_extra_info("socket")
                        if response.status_code != httpx.codes.OK:
                            raise SourceLost(f"the answer is {response.status_code}")
                        media_type = response.headers.get("content-type", "")
                        if not any(kind in media_type.lower() for kind in _PLAYLISTS):
                            yield from _received(response, stop, format_of(media_type))
                            return
                        url = _first_of(response)
                raise SourceLost("playlists that name playlists")
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise SourceLost(_http_problem(error)) from None
        finally:
            self._socket = None

    def interrupt(self) -> None:
        """See Source."""
        waiting = self._socket
        if waiting is not None:
            with suppress(OSError, ValueError):
                waiting.shutdown(socket.SHUT_RDWR)


class _Response:
    """The bytes of an answer as they come. What ends them is told at the end: all that came is heard first."""

    def __init__(self, response: httpx.Response, stop: threading.Event) -> None:
        self._parts = response.iter_raw()
        self._held = b""
        self._stop = stop
        self.problem: str | None = None

    def read(self, size: int) -> bytes:
        """See livedecoding.Bytes."""
        while not self._held:
            if self._stop.is_set():
                return b""
            try:
                self._held = next(self._parts, b"")
            except (httpx.HTTPError, OSError) as error:
                self.problem = _http_problem(error)
                return b""
            if not self._held:
                return b""
        out, self._held = self._held[:size], self._held[size:]
        return out


def _received(response: httpx.Response, stop: threading.Event, container_format: str | None) -> Sounds:
    received = _Response(response, stop)
    for samples in decoded(received, container_format):
        yield samples, None
    if stop.is_set():
        raise Stopped
    if received.problem is not None:
        raise SourceLost(received.problem)


class FileSource:
    """A file that somebody else writes: followed by its name, so that one which takes its place is heard next.

    `once` it is heard to its end, and not followed.
    """

    def __init__(self, path: Path, *, once: bool = False) -> None:
        self._path = path
        self._once = once
        self.label = label_of(path.name)

    def listen(self, stop: threading.Event, heard: Place | None) -> Sounds:
        """See Source. Sound that has been heard is passed over, so that a file is heard once."""
        try:
            file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise SourceLost(error.strerror or "it cannot be read") from None
        try:
            about = os.fstat(file)
            identity = f"{about.st_dev}:{about.st_ino}"
            same = heard is not None and heard.file == identity and about.st_size >= heard.bytes
            skip = heard.samples if heard is not None and same else 0
            following = _Following(self._path, file, stop, once=self._once)
            at = 0
            for samples in decoded(following, endless=not self._once):
                place = Place(identity, max(at, skip), following.bytes)
                fresh = samples[max(0, skip - at) :]
                at += len(samples)
                if len(fresh):
                    yield fresh, place
        finally:
            os.close(file)

    def interrupt(self) -> None:
        """See Source."""


class _Following:
    """The bytes of a file as it grows; its end is where another one has taken its place, or it has been cut."""

    def __init__(self, path: Path, file: int, stop: threading.Event, *, once: bool) -> None:
        self._path, self._file, self._stop, self._once = path, file, stop, once
        self.bytes = 0

    def read(self, size: int) -> bytes:
        """See livedecoding.Bytes. Raises Stopped."""
        while True:
            if self._stop.is_set():
                raise Stopped  # and not an end: what is half read is to be read again
            replaced = self._is_replaced()
            data = os.read(self._file, size)
            self.bytes += len(data)
            if data or replaced or self._once:
                return data
            time.sleep(POLL_S)

    def _is_replaced(self) -> bool:
        own = os.fstat(self._file)
        with suppress(OSError):
            other = os.stat(self._path)
            return (own.st_dev, own.st_ino) != (other.st_dev, other.st_ino) or own.st_size < self.bytes
        return False  # no name, or none yet: it may be written to all the same


class OpenedSource:
    """What FFmpeg opens itself: other protocols, and capture devices."""

    def __init__(self, name: str, container_format: str | None, label: str) -> None:
        self._name, self._format, self.label = name, container_format, label

    def listen(self, stop: threading.Event, heard: Place | None) -> Sounds:
        """See Source."""
        for samples in decoded(self._name, self._format):
            if stop.is_set():
                raise Stopped
            yield samples, None

    def interrupt(self) -> None:
        """See Source: it ends with the next sound, or with the process."""


def label_of(text: str) -> str:
    """`text` as a name for a folder."""
    plain = re.sub(r"[^\w.-]+", "-", text, flags=re.ASCII).strip("-.")[:LABEL_BYTES]
    return plain or "source"


def _url_label(url: str) -> str:
    """Host, port and path: without user, password and query."""
    parts = urlsplit(url)
    try:
        port = "" if parts.port is None else f"-{parts.port}"
    except ValueError as error:
        raise SourceInvalid("the URL cannot be read") from error
    return label_of(f"{parts.hostname or ''}{port}{parts.path}")


def _first_of(response: httpx.Response) -> str:
    """The first address of a playlist (m3u or pls). Raises SourceLost."""
    held = b""
    for part in response.iter_raw():
        held += part
        if len(held) > PLAYLIST_BYTES:
            break
    if b"#EXT-X-" in held:
        raise SourceLost("a playlist of segments (HLS), not a stream")
    found = re.search(rb"^(?:File\d+=)?\s*(https?://\S+)", held, re.MULTILINE | re.IGNORECASE)
    if found is None:
        raise SourceLost("a playlist that names no stream")
    return found.group(1).decode("utf-8", "replace")


def _http_problem(error: BaseException) -> str:
    """What is wrong, without the address."""
    if isinstance(error, httpx.ReadTimeout):
        return f"nothing has come for {READ_S:.0f} s"
    return f"no connection ({type(error).__name__})" if isinstance(error, httpx.ConnectError) else type(error).__name__
