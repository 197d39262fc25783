"""A client of the HTTP interface, with and without async: `Client(url).search("clip.wav", "radio").hits`.

Answers are the models that the service itself answers with.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from service.calls import Call, Calls, Sent, ServiceError, ServiceUnreachable, Source, Stretch, read
from service.exports.formats import Format
from service.jobs.schemas import JobOut
from service.schemas import ArchiveOut, BatchOut, HitOut, RecordingOut, SearchOut
from service.watches.schemas import WatchHitOut, WatchMadeOut, WatchOut

__all__ = ["AsyncClient", "Client", "ServiceError", "ServiceUnreachable"]

TIMEOUT_S = 60.0
POLL_S = 0.5  # between two looks at a job

T = TypeVar("T")


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
        self._calls = Calls()

    def _do(self, call: Call[T]) -> T:
        try:
            return read(call, self._http.request(call.method, call.path, **call.options))
        except httpx.TransportError as error:
            raise ServiceUnreachable(str(error)) from error
        finally:
            call.close()

    def archives(self) -> list[ArchiveOut]:
        """All archives."""
        return self._do(self._calls.archives())

    def recordings(
        self, archive: str, contains: str | None = None, where: Mapping[str, Any] | None = None
    ) -> Iterator[RecordingOut]:
        """Recordings of an archive by name, fetched page by page; `where` is what their metadata contain."""
        offset: int | None = 0
        while offset is not None:
            page = self._do(self._calls.recordings(archive, contains, where, offset))
            yield from page.recordings
            offset = page.next_offset

    def recording(self, recording: int) -> RecordingOut:
        """One recording."""
        return self._do(self._calls.recording(recording))

    def delete_recording(self, recording: int) -> None:
        """Delete a recording from the index."""
        self._do(self._calls.delete_recording(recording))

    def create_archive(self, name: str) -> ArchiveOut:
        """Make an empty archive."""
        return self._do(self._calls.create_archive(name))

    def delete_archive(self, name: str) -> None:
        """Delete an archive with all that was made of its recordings."""
        self._do(self._calls.delete_archive(name))

    def describe(self, recording: int, **said: Any) -> RecordingOut:
        """Change what is said of a recording: `metadata` (a dictionary), `external_id` (None takes it away)."""
        return self._do(self._calls.describe(recording, said))

    def upload(
        self,
        recordings: Sequence[str | Path],
        archive: str = "default",
        *,
        about: Sequence[Mapping[str, Any]] = (),
        replace: bool = False,
        sent: Sent | None = None,
    ) -> JobOut:
        """Send recordings into an archive; the job that indexes them.

        `about` says of each in turn `name`, `metadata` and `external_id`. `sent` is told how many bytes have been sent,
        and how many there are.
        """
        return self._do(self._calls.upload(recordings, archive, about, replace, sent))

    def index_folder(self, folder: str, archive: str = "default") -> JobOut:
        """Index a folder of the server, below one of its roots; the job that does."""
        return self._do(self._calls.index_folder(folder, archive))

    def job(self, job: int) -> JobOut:
        """A job as it is now."""
        return self._do(self._calls.job(job))

    def jobs(self, archive: str | None = None) -> list[JobOut]:
        """The latest jobs first."""
        return self._do(self._calls.jobs(archive))

    def wait(self, job: JobOut | int, progress: Callable[[JobOut], None] | None = None) -> JobOut:
        """A job when nothing more will be done for it; `progress` is told of it every half second until then."""
        now = self.job(job if isinstance(job, int) else job.id)
        while now.finished_at is None:
            if progress is not None:
                progress(now)
            time.sleep(POLL_S)
            now = self.job(now.id)
        return now

    def cancel(self, job: int) -> JobOut:
        """Give a job up; what it has indexed stays."""
        return self._do(self._calls.cancel(job))

    def watch(
        self, name: str, examples: Source | Stretch | Sequence[Source], archive: str = "default", **options: Any
    ) -> WatchMadeOut:
        """Search each recording that comes from now on, by clips or a stretch as in `search`.

        Options: `min_score`, `webhook`, and `start` and `end` in seconds of a clip.
        """
        return self._do(self._calls.watch(name, examples, archive, options))

    def watches(self, archive: str | None = None) -> list[WatchOut]:
        """All watches."""
        return self._do(self._calls.watches(archive))

    def watch_hits(self, watch: int) -> list[WatchHitOut]:
        """What a watch has found, the latest first, at most 1,000."""
        return self._do(self._calls.watch_hits(watch))

    def delete_watch(self, watch: int) -> None:
        """Delete a watch with what it has found."""
        self._do(self._calls.delete_watch(watch))

    def clip(self, recording: int, start: float, end: float) -> bytes:
        """Seconds [start, end) of a recording as a WAV file."""
        return self._do(self._calls.clip(recording, start, end))

    def search(
        self, examples: Source | Stretch | Sequence[Source], archive: str = "default", **options: Any
    ) -> SearchOut:
        """Search for a clip (a path, or the bytes of a file), for several of one term, or for a stretch of a recording.

        Options: `limit`, `min_score`, `exact`, `where` (what the metadata of recordings contain), `rescore` ("deep"),
        `start` and `end` in seconds of a clip, and `right` and `wrong`, hits of an earlier answer that somebody has
        judged.
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
        self._calls = Calls()

    async def _do(self, call: Call[T]) -> T:
        try:
            return read(call, await self._http.request(call.method, call.path, **call.options))
        except httpx.TransportError as error:
            raise ServiceUnreachable(str(error)) from error
        finally:
            call.close()

    async def archives(self) -> list[ArchiveOut]:
        """All archives."""
        return await self._do(self._calls.archives())

    async def recordings(
        self, archive: str, contains: str | None = None, where: Mapping[str, Any] | None = None
    ) -> AsyncIterator[RecordingOut]:
        """As `Client`."""
        offset: int | None = 0
        while offset is not None:
            page = await self._do(self._calls.recordings(archive, contains, where, offset))
            for recording in page.recordings:
                yield recording
            offset = page.next_offset

    async def recording(self, recording: int) -> RecordingOut:
        """One recording."""
        return await self._do(self._calls.recording(recording))

    async def delete_recording(self, recording: int) -> None:
        """Delete a recording from the index."""
        await self._do(self._calls.delete_recording(recording))

    async def create_archive(self, name: str) -> ArchiveOut:
        """As `Client`."""
        return await self._do(self._calls.create_archive(name))

    async def delete_archive(self, name: str) -> None:
        """As `Client`."""
        await self._do(self._calls.delete_archive(name))

    async def describe(self, recording: int, **said: Any) -> RecordingOut:
        """As `Client`."""
        return await self._do(self._calls.describe(recording, said))

    async def upload(
        self,
        recordings: Sequence[str | Path],
        archive: str = "default",
        *,
        about: Sequence[Mapping[str, Any]] = (),
        replace: bool = False,
        sent: Sent | None = None,
    ) -> JobOut:
        """As `Client`."""
        return await self._do(self._calls.upload(recordings, archive, about, replace, sent))

    async def index_folder(self, folder: str, archive: str = "default") -> JobOut:
        """As `Client`."""
        return await self._do(self._calls.index_folder(folder, archive))

    async def job(self, job: int) -> JobOut:
        """As `Client`."""
        return await self._do(self._calls.job(job))

    async def jobs(self, archive: str | None = None) -> list[JobOut]:
        """As `Client`."""
        return await self._do(self._calls.jobs(archive))

    async def wait(self, job: JobOut | int, progress: Callable[[JobOut], None] | None = None) -> JobOut:
        """As `Client`."""
        now = await self.job(job if isinstance(job, int) else job.id)
        while now.finished_at is None:
            if progress is not None:
                progress(now)
            await asyncio.sleep(POLL_S)
            now = await self.job(now.id)
        return now

    async def cancel(self, job: int) -> JobOut:
        """As `Client`."""
        return await self._do(self._calls.cancel(job))

    async def watch(
        self, name: str, examples: Source | Stretch | Sequence[Source], archive: str = "default", **options: Any
    ) -> WatchMadeOut:
        """As `Client`."""
        return await self._do(self._calls.watch(name, examples, archive, options))

    async def watches(self, archive: str | None = None) -> list[WatchOut]:
        """As `Client`."""
        return await self._do(self._calls.watches(archive))

    async def watch_hits(self, watch: int) -> list[WatchHitOut]:
        """As `Client`."""
        return await self._do(self._calls.watch_hits(watch))

    async def delete_watch(self, watch: int) -> None:
        """As `Client`."""
        await self._do(self._calls.delete_watch(watch))

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
