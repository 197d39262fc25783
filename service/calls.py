"""Every request of the HTTP interface, as data: what is sent, and how the answer is read; for both clients."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx

from service.exports.formats import Format
from service.jobs.schemas import JobOut, JobsOut
from service.schemas import (
    ArchiveOut,
    ArchivesOut,
    BatchOut,
    HitOut,
    RecordingOut,
    RecordingsOut,
    SearchOut,
)
from service.watches.schemas import WatchesOut, WatchHitOut, WatchHitsOut, WatchMadeOut, WatchOut

PAGE = 500  # recordings at a time

T = TypeVar("T")
Source = str | Path | bytes
Stretch = tuple[int, float, float]  # a recording's id, and where in it the term begins and ends, in seconds
Sent = Callable[[int, int], None]  # is told how many bytes have been sent, and how many there are


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
class Call(Generic[T]):
    """A request, and how its answer is read."""

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    options: dict[str, Any] = field(default_factory=dict)

    def close(self) -> None:
        """Close the files that it sends."""
        for _, (_, file) in self.options.get("files", ()):
            if isinstance(file, io.IOBase):
                file.close()


class Calls:
    """Every request of the interface, for both clients."""

    def archives(self) -> Call[list[ArchiveOut]]:
        return Call("GET", "/v1/archives", lambda r: ArchivesOut.model_validate_json(r.content).archives)

    def create_archive(self, name: str) -> Call[ArchiveOut]:
        return Call(
            "POST", "/v1/archives", lambda r: ArchiveOut.model_validate_json(r.content), {"json": {"name": name}}
        )

    def delete_archive(self, name: str) -> Call[None]:
        return Call("DELETE", f"/v1/archives/{quote(name)}", lambda r: None)

    def recordings(
        self, archive: str, contains: str | None, where: Mapping[str, Any] | None, offset: int
    ) -> Call[RecordingsOut]:
        query: dict[str, Any] = {"archive": archive, "limit": PAGE, "offset": offset}
        query |= {"contains": contains} if contains else {}
        query |= {} if where is None else {"where": json.dumps(where)}
        return Call("GET", "/v1/recordings", lambda r: RecordingsOut.model_validate_json(r.content), {"params": query})

    def recording(self, recording: int) -> Call[RecordingOut]:
        return Call("GET", f"/v1/recordings/{recording}", lambda r: RecordingOut.model_validate_json(r.content))

    def delete_recording(self, recording: int) -> Call[None]:
        return Call("DELETE", f"/v1/recordings/{recording}", lambda r: None)

    def describe(self, recording: int, said: dict[str, Any]) -> Call[RecordingOut]:
        path = f"/v1/recordings/{recording}"
        return Call("PATCH", path, lambda r: RecordingOut.model_validate_json(r.content), {"json": said})

    def upload(
        self,
        recordings: Sequence[str | Path],
        archive: str,
        about: Sequence[Mapping[str, Any]],
        replace: bool,
        sent: Sent | None,
    ) -> Call[JobOut]:
        form = {"archive": archive, "about": json.dumps(list(about)), "replace": str(replace).lower()}
        paths = [Path(recording) for recording in recordings]
        progress = _Progress(sum(path.stat().st_size for path in paths), sent)
        files = [("file", (path.name, _Told(path, progress))) for path in paths]
        return Call("POST", "/v1/recordings", _job, {"data": form, "files": files})

    def index_folder(self, folder: str, archive: str) -> Call[JobOut]:
        return Call("POST", "/v1/jobs", _job, {"json": {"folder": folder, "archive": archive}})

    def job(self, job: int) -> Call[JobOut]:
        return Call("GET", f"/v1/jobs/{job}", _job)

    def jobs(self, archive: str | None) -> Call[list[JobOut]]:
        query = {} if archive is None else {"archive": archive}
        return Call("GET", "/v1/jobs", lambda r: JobsOut.model_validate_json(r.content).jobs, {"params": query})

    def cancel(self, job: int) -> Call[JobOut]:
        return Call("POST", f"/v1/jobs/{job}/cancel", _job)

    def watch(
        self, name: str, examples: Source | Stretch | Sequence[Source], archive: str, options: dict[str, Any]
    ) -> Call[WatchMadeOut]:
        unknown = options.keys() - {"min_score", "webhook", "start", "end"}
        if unknown:
            raise TypeError(f"a watch has no option {', '.join(sorted(unknown))}")
        asked = _asked(examples, {"name": name, "archive": archive} | options)
        return Call("POST", "/v1/watches", lambda r: WatchMadeOut.model_validate_json(r.content), asked)

    def watches(self, archive: str | None) -> Call[list[WatchOut]]:
        query = {} if archive is None else {"archive": archive}
        return Call(
            "GET", "/v1/watches", lambda r: WatchesOut.model_validate_json(r.content).watches, {"params": query}
        )

    def watch_hits(self, watch: int) -> Call[list[WatchHitOut]]:
        path = f"/v1/watches/{watch}/hits"
        return Call(
            "GET", path, lambda r: WatchHitsOut.model_validate_json(r.content).hits, {"params": {"limit": 1_000}}
        )

    def delete_watch(self, watch: int) -> Call[None]:
        return Call("DELETE", f"/v1/watches/{watch}", lambda r: None)

    def clip(self, recording: int, start: float, end: float) -> Call[bytes]:
        query = {"params": {"start": start, "end": end}}
        return Call("GET", f"/v1/recordings/{recording}/clip", lambda r: r.content, query)

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
    ) -> Call[SearchOut]:
        form = _form(archive, wanted)
        form |= {name: value for name, value in (("start", start), ("end", end)) if value is not None}
        path = "/v1/search"
        if right or wrong:
            path = "/v1/search/refine"
            form |= {"right": json.dumps(_marks(right)), "wrong": json.dumps(_marks(wrong))}
        return Call("POST", path, lambda r: SearchOut.model_validate_json(r.content), _asked(examples, form))

    def batch(self, clips: Sequence[Source], archive: str, **wanted: Any) -> Call[BatchOut]:
        options = {"data": _form(archive, wanted), "files": _files(clips)}
        return Call("POST", "/v1/search/batch", lambda r: BatchOut.model_validate_json(r.content), options)

    def export(self, hits: Sequence[HitOut], kind: Format | str, label: str) -> Call[bytes]:
        body = {"label": label, "hits": [hit.model_dump(mode="json") for hit in hits]}
        return Call("POST", f"/v1/exports/{Format(kind)}", lambda r: r.content, {"json": body})


def _job(response: httpx.Response) -> JobOut:
    return JobOut.model_validate_json(response.content)


def _asked(examples: Source | Stretch | Sequence[Source], form: dict[str, Any]) -> dict[str, Any]:
    """The body of a question: clips as files, or the fields of a stretch. Raises OSError."""
    if isinstance(examples, tuple):
        return {"data": form | dict(zip(("recording", "start", "end"), examples, strict=True))}
    return {"data": form, "files": _files([examples] if isinstance(examples, str | Path | bytes) else examples)}


class _Progress:
    """Counts what all files of an upload have sent."""

    def __init__(self, total: int, sent: Sent | None) -> None:
        self.total, self.done, self._sent = total, 0, sent

    def add(self, count: int) -> None:
        self.done += count
        if self._sent is not None and count:
            self._sent(self.done, self.total)


class _Told(io.FileIO):
    """A file that tells how much of it is read."""

    def __init__(self, path: Path, progress: _Progress) -> None:
        super().__init__(os.fspath(path), "rb")
        self._progress = progress

    def read(self, size: int | None = -1, /) -> bytes:
        part = super().read(-1 if size is None else size) or b""
        self._progress.add(len(part))
        return part


def _form(archive: str, wanted: dict[str, Any]) -> dict[str, Any]:
    unknown = wanted.keys() - {"limit", "min_score", "exact", "rescore", "where"}
    if unknown:
        raise TypeError(f"a search has no option {', '.join(sorted(unknown))}")
    if wanted.get("where") is not None:
        wanted = wanted | {"where": json.dumps(wanted["where"])}
    return {"archive": archive} | wanted


def _files(clips: Sequence[Source]) -> list[tuple[str, tuple[str, bytes]]]:
    """Raises OSError where a file cannot be read."""
    return [
        ("file", ("clip", clip) if isinstance(clip, bytes) else (Path(clip).name, Path(clip).read_bytes()))
        for clip in clips
    ]


def _marks(hits: Sequence[HitOut]) -> list[dict[str, float]]:
    return [{"recording": hit.recording.id, "start": hit.start, "end": hit.end} for hit in hits]


def read(call: Call[T], response: httpx.Response) -> T:
    """What a call is answered. Raises ServiceError."""
    if response.is_success:
        return call.read(response)
    try:
        error = response.json()["error"]
        raise ServiceError(error["message"], error["code"], response.status_code, error.get("field"))
    except (ValueError, KeyError, TypeError):
        raise ServiceError(f"the answer was {response.status_code}", "unknown", response.status_code) from None
