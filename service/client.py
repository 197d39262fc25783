"""A client of the HTTP interface, with and without async: `Client(url).search("clip.wav", "radio").hits`.

Needs the extra `client`. Answers are the models that the service itself answers with.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import httpx

from service.exports.formats import Format
from service.schemas import (
    ArchiveOut,
    ArchivesOut,
    BatchOut,
    HitOut,
    RecordingOut,
    RecordingsOut,
    SearchOut,
)

TIMEOUT_S = 60.0
PAGE = 500  # recordings at a time

T = TypeVar("T")
Source = str | Path | bytes
Stretch = tuple[int, float, float]  # a recording's id, and where in it the term begins and ends, in seconds


class ServiceError(Exception):
    """The service refused: `code` is stable, `field` names what is to blame where something is.

    ServiceError
    └── ServiceUnreachable   it does not answer at all
    """

    def __init__(self, message: str, code: str, status: int | None = None, field: str | None = None) -> None:
        super().__init__(message)
        self.code, self.status, self.field = code, status, field


class ServiceUnreachable(ServiceError):
    """There was no answer, or not in time."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "service_unreachable")


@dataclass(frozen=True)
class _Call(Generic[T]):
    """A request, and how its answer is read."""

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    options: dict[str, Any] = field(default_factory=dict)


class _Calls:
    """Every request of the interface, for both clients."""

    def archives(self) -> _Call[list[ArchiveOut]]:
        return _Call("GET", "/v1/archives", lambda r: ArchivesOut.model_validate_json(r.content).archives)

    def recordings(self, archive: str, contains: str | None, offset: int) -> _Call[RecordingsOut]:
        query = {"archive": archive, "limit": PAGE, "offset": offset} | ({"contains": contains} if contains else {})
        return _Call("GET", "/v1/recordings", lambda r: RecordingsOut.model_validate_json(r.content), {"params": query})

    def recording(self, recording: int) -> _Call[RecordingOut]:
        return _Call("GET", f"/v1/recordings/{recording}", lambda r: RecordingOut.model_validate_json(r.content))

    def delete_recording(self, recording: int) -> _Call[None]:
        return _Call("DELETE", f"/v1/recordings/{recording}", lambda r: None)

    def clip(self, recording: int, start: float, end: float) -> _Call[bytes]:
        query = {"params": {"start": start, "end": end}}
        return _Call("GET", f"/v1/recordings/{recording}/clip", lambda r: r.content, query)

    def search(
        self,
        examples: Source | Stretch | Sequence[Source],
        archive: str,
        *,
        start: float | None = None,
        end: float | None = None,
        right: Sequence[HitOut] = (),
        wrong: Sequence[HitOut] = (),
        **wanted: Any,
    ) -> _Call[SearchOut]:
        form = _form(archive, wanted)
        files = None
        if isinstance(examples, tuple):
            form |= dict(zip(("recording", "start", "end"), examples, strict=True))
        else:
            files = _files([examples] if isinstance(examples, str | Path | bytes) else examples)
            form |= {name: value for name, value in (("start", start), ("end", end)) if value is not None}
        path = "/v1/search"
        if right or wrong:
            path = "/v1/search/refine"
            form |= {"right": json.dumps(_marks(right)), "wrong": json.dumps(_marks(wrong))}
        options = {"data": form} if files is None else {"data": form, "files": files}
        return _Call("POST", path, lambda r: SearchOut.model_validate_json(r.content), options)

    def batch(self, clips: Sequence[Source], archive: str, **wanted: Any) -> _Call[BatchOut]:
        options = {"data": _form(archive, wanted), "files": _files(clips)}
        return _Call("POST", "/v1/search/batch", lambda r: BatchOut.model_validate_json(r.content), options)

    def export(self, hits: Sequence[HitOut], kind: Format | str, label: str) -> _Call[bytes]:
        body = {"label": label, "hits": [hit.model_dump(mode="json") for hit in hits]}
        return _Call("POST", f"/v1/exports/{Format(kind)}", lambda r: r.content, {"json": body})


def _form(archive: str, wanted: dict[str, Any]) -> dict[str, Any]:
    unknown = wanted.keys() - {"limit", "min_score", "exact", "rescore"}
    if unknown:
        raise TypeError(f"a search has no option {', '.join(sorted(unknown))}")
    return {"archive": archive} | wanted


def _files(clips: Sequence[Source]) -> list[tuple[str, tuple[str, bytes]]]:
    """Raises OSError where a file cannot be read."""
    return [
        ("file", ("clip", clip) if isinstance(clip, bytes) else (Path(clip).name, Path(clip).read_bytes()))
        for clip in clips
    ]


def _marks(hits: Sequence[HitOut]) -> list[dict[str, float]]:
    return [{"recording": hit.recording.id, "start": hit.start, "end": hit.end} for hit in hits]


def _read(call: _Call[T], response: httpx.Response) -> T:
    if response.is_success:
        return call.read(response)
    try:
        error = response.json()["error"]
        raise ServiceError(error["message"], error["code"], response.status_code, error.get("field"))
    except (ValueError, KeyError, TypeError):
        raise ServiceError(f"the answer was {response.status_code}", "unknown", response.status_code) from None


def _headers(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Authorization": f"Bearer {key}"}


class Client:
    """Talks to a service at `url`, with an API key where one is needed. Threads may share one; `close` it at the end.

    Methods raise ServiceError, with the service's own code, and OSError for a clip that cannot be read here.
    """

    def __init__(
        self, url: str = "http://127.0.0.1:8000", key: str | None = None, timeout_s: float = TIMEOUT_S
    ) -> None:
        self._http = httpx.Client(base_url=url, headers=_headers(key), timeout=timeout_s)
        self._calls = _Calls()

    def _do(self, call: _Call[T]) -> T:
        try:
            return _read(call, self._http.request(call.method, call.path, **call.options))
        except httpx.TransportError as error:
            raise ServiceUnreachable(str(error)) from error

    def archives(self) -> list[ArchiveOut]:
        """All archives."""
        return self._do(self._calls.archives())

    def recordings(self, archive: str, contains: str | None = None) -> Iterator[RecordingOut]:
        """Recordings of an archive by name, fetched page by page."""
        offset: int | None = 0
        while offset is not None:
            page = self._do(self._calls.recordings(archive, contains, offset))
            yield from page.recordings
            offset = page.next_offset

    def recording(self, recording: int) -> RecordingOut:
        """One recording."""
        return self._do(self._calls.recording(recording))

    def delete_recording(self, recording: int) -> None:
        """Delete a recording from the index."""
        self._do(self._calls.delete_recording(recording))

    def clip(self, recording: int, start: float, end: float) -> bytes:
        """Seconds [start, end) of a recording as a WAV file."""
        return self._do(self._calls.clip(recording, start, end))

    def search(
        self, examples: Source | Stretch | Sequence[Source], archive: str = "default", **options: Any
    ) -> SearchOut:
        """Search for a clip (a path, or the bytes of a file), for several of one term, or for a stretch of a recording.

        Options: `limit`, `min_score`, `exact`, `rescore` ("deep"), `start` and `end` in seconds of a clip, and `right`
        and `wrong`, hits of an earlier answer that somebody has judged.
        """
        return self._do(self._calls.search(examples, archive, **options))

    def batch(self, clips: Sequence[Source], archive: str = "default", **options: Any) -> BatchOut:
        """Search for many clips, each a query of its own; options as of `search`, without marks and stretches."""
        return self._do(self._calls.batch(clips, archive, **options))

    def export(self, hits: Sequence[HitOut], kind: Format | str, label: str = "hit") -> bytes:
        """Hits as csv, jsonl, audacity, textgrid or eaf: a table, or a zip of label files."""
        return self._do(self._calls.export(hits, kind, label))

    def close(self) -> None:
        """Give connections back."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient:
    """`Client` for async code: the same methods, to be awaited; `recordings` is an async iterator."""

    def __init__(
        self, url: str = "http://127.0.0.1:8000", key: str | None = None, timeout_s: float = TIMEOUT_S
    ) -> None:
        self._http = httpx.AsyncClient(base_url=url, headers=_headers(key), timeout=timeout_s)
        self._calls = _Calls()

    async def _do(self, call: _Call[T]) -> T:
        try:
            return _read(call, await self._http.request(call.method, call.path, **call.options))
        except httpx.TransportError as error:
            raise ServiceUnreachable(str(error)) from error

    async def archives(self) -> list[ArchiveOut]:
        """All archives."""
        return await self._do(self._calls.archives())

    async def recordings(self, archive: str, contains: str | None = None) -> AsyncIterator[RecordingOut]:
        """Recordings of an archive by name, fetched page by page."""
        offset: int | None = 0
        while offset is not None:
            page = await self._do(self._calls.recordings(archive, contains, offset))
            for recording in page.recordings:
                yield recording
            offset = page.next_offset

    async def recording(self, recording: int) -> RecordingOut:
        """One recording."""
        return await self._do(self._calls.recording(recording))

    async def delete_recording(self, recording: int) -> None:
        """Delete a recording from the index."""
        await self._do(self._calls.delete_recording(recording))

    async def clip(self, recording: int, start: float, end: float) -> bytes:
        """Seconds [start, end) of a recording as a WAV file."""
        return await self._do(self._calls.clip(recording, start, end))

    async def search(
        self, examples: Source | Stretch | Sequence[Source], archive: str = "default", **options: Any
    ) -> SearchOut:
        """As `Client.search`."""
        return await self._do(self._calls.search(examples, archive, **options))

    async def batch(self, clips: Sequence[Source], archive: str = "default", **options: Any) -> BatchOut:
        """As `Client.batch`."""
        return await self._do(self._calls.batch(clips, archive, **options))

    async def export(self, hits: Sequence[HitOut], kind: Format | str, label: str = "hit") -> bytes:
        """As `Client.export`."""
        return await self._do(self._calls.export(hits, kind, label))

    async def close(self) -> None:
        """Give connections back."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
