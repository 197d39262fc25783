"""Doing a job: files are looked for, indexed, and what is not needed any more is removed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from indexer import pipeline, store
from indexer.database import DatabaseError
from indexer.discover import Failure, Found, FoundFile, discover
from indexer.intake import Description
from indexer.report import IndexReport, Progressed
from service import registry, retokenizing
from service.deps import Backend
from service.errors import INTERNAL, code_of, message_of
from service.jobs import folders, queue, uploads
from service.jobs.queue import JobInfo
from service.search import localindex

TELL_S = 0.5  # between two lines of progress
BUSY_S = 2.0  # until an archive into which somebody else is indexing is tried again

log = logging.getLogger(__name__)


class _Cancelled(Exception):
    """Somebody wants the job to be given up."""


class _Stopped(Exception):
    """The process is to end; the job goes on in another."""


def do(job: JobInfo, connection: Connection, backend: Backend, stop: threading.Event) -> None:
    """Do a job that `connection` holds, and write down what came of it. Raises DatabaseError."""
    try:
        report = _index(job, connection, backend, stop)
    except _Cancelled:
        with connection.begin():
            queue.finish(connection, job.id, "cancelled")
            if job.kind == "refit":
                retokenizing.give_up(connection, job.archive)
    except _Stopped:
        with connection.begin():
            queue.put_off(connection, job.id, 0.0, counts=False)
        return
    except store.ArchiveBusy:
        with connection.begin():
            queue.put_off(connection, job.id, BUSY_S, counts=False)
        return
    except DatabaseError:
        raise
    except Exception as error:
        if code_of(error) == INTERNAL:
            log.exception("the job %d has failed", job.id)
        message = message_of(error) if code_of(error) != INTERNAL else "something went wrong inside; the log says what"
        with connection.begin():
            queue.finish(connection, job.id, "failed", error={"code": code_of(error), "message": message})
    else:
        with connection.begin():
            _finish(connection, job, report)
            if report.outgrown and job.kind != "refit" and report.archive_s <= backend.settings.refit_hours * 3_600.0:
                queue.add_once(connection, job.archive_id, "refit")
    _clear_away(job, connection, backend)


def _index(job: JobInfo, connection: Connection, backend: Backend, stop: threading.Event) -> IndexReport:
    told_at = 0.0

    def progress(now: Progressed) -> None:
        nonlocal told_at
        if stop.is_set():
            raise _Stopped
        if time.monotonic() - told_at >= TELL_S:
            told_at = time.monotonic()
            with connection.begin():
                if queue.tell(connection, job.id, _rounded(now)):
                    raise _Cancelled

    settings = backend.settings
    with connection.begin():
        sha256 = store.get_archive(connection, job.archive).tokenizer_sha256
    tokenizer = registry.file_of(settings.home_path, settings.tokenizer, sha256)
    if job.kind == "refit":
        report = retokenizing.refit(
            backend.database, job.archive, tokenizer,
            workers=settings.index_workers, device=settings.device, progress=progress,
        )  # fmt: skip
    else:
        report = _index_files(job, tokenizer, backend, progress)
    with connection.begin():
        localindex.prepare(backend.search.index, connection, job.archive)
    return report


def _index_files(
    job: JobInfo, tokenizer: Path, backend: Backend, progress: Callable[[Progressed], None]
) -> IndexReport:
    settings = backend.settings
    descriptions: dict[str, Description] = {}
    prune: list[Path] = []
    if job.kind == "index_folder":
        path = folders.allowed(job.parameters["folder"], settings.roots)
        found = discover([path], settings.roots)
        prune = [path] if job.parameters.get("prune") else []
    else:
        found, descriptions = _sent(job)
    return pipeline.index_files(
        backend.database, found, job.archive, tokenizer,
        workers=settings.index_workers, codes=False, device=settings.device, progress=progress,
        descriptions=descriptions, replace=job.parameters.get("replace", False), prune=prune,
    )  # fmt: skip


def _sent(job: JobInfo) -> tuple[Found, dict[str, Description]]:
    """The files of an upload, as far as they are still there, and what was said of each."""
    files, failed = [], []
    descriptions = {}
    for sent in job.parameters["files"]:
        path = Path(sent["path"])
        try:
            about = path.stat()
        except OSError:
            failed.append(Failure(sent["name"], "audio_gone", "the recording that was sent is not there any more"))
            continue
        files.append(FoundFile(sent["name"], path, about.st_size, about.st_mtime_ns))
        external_id = sent.get("external_id")
        descriptions[sent["name"]] = Description(sent.get("metadata"), ... if external_id is None else external_id)
    return Found(files, failed), descriptions


def _rounded(now: Progressed) -> dict[str, Any]:
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in asdict(now).items()}


def _finish(connection: Connection, job: JobInfo, report: IndexReport) -> None:
    """A job of which nothing came but failures has failed."""
    if report.failed and len(report.failed) >= report.found:
        first = report.failed[0]
        error = {"code": first.code, "message": f"{first.name}: {first.message}"}
        queue.finish(connection, job.id, "failed", report=report.as_json(), error=error)
    else:
        queue.finish(connection, job.id, "done", report=report.as_json())


def _clear_away(job: JobInfo, connection: Connection, backend: Backend) -> None:
    """Remove recordings that were sent in and are not, or no longer, those of a recording."""
    home = backend.settings.home_path
    sent = [Path(file["path"]) for file in job.parameters.get("files", [])]
    sent += [Path(path) for path in job.parameters.get("replaces", [])]
    with connection.begin():
        kept = uploads.used(connection, sent)
    uploads.drop(home, [path for path in sent if path not in kept])
