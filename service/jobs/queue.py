"""Jobs as rows: asked for, taken by one runner at a time, told of while they go on, finished.

Whoever does a job holds an advisory lock of PostgreSQL on it, which goes with the connection, however that ends: a job
that is called running and that nobody holds has lost its runner, and the next one takes it up again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Connection, Row, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.sql import bindparam

from service.errors import JobFinished, JobNotFound

Kind = Literal["index_folder", "index_upload", "refit"]
State = Literal["queued", "running", "done", "failed", "cancelled"]

KEPT_DAYS = 90  # that jobs are listed after they are over
MOST_OPEN = 1_000  # jobs of one archive that are looked through
ATTEMPTS = 3  # runners that a job may lose before it is given up
_LOCK = 7_295_318  # first half of the key of a job's lock; its id is the other

_JOB = """
    SELECT job.id, archive.name AS archive, job.archive_id, job.kind, job.state, job.parameters, job.progress,
        job.report, job.error, job.attempts, job.cancel_wanted, job.created_at, job.started_at, job.finished_at
    FROM job JOIN archive ON archive.id = job.archive_id
"""


@dataclass(frozen=True)
class JobInfo:
    """A job with the name of its archive; `progress`, `report` and `error` are JSON, or None while there is none."""

    id: int
    archive: str
    archive_id: int
    kind: Kind
    state: State
    parameters: dict[str, Any]
    progress: dict[str, Any] | None
    report: dict[str, Any] | None
    error: dict[str, Any] | None
    attempts: int
    cancel_wanted: bool
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


def add(connection: Connection, archive_id: int, kind: Kind, parameters: dict[str, Any]) -> int:
    """Ask for a job; its id."""
    statement = text("""
        INSERT INTO job (archive_id, kind, parameters) VALUES (:archive_id, :kind, :parameters) RETURNING id
    """).bindparams(bindparam("parameters", type_=JSONB))
    values = {"archive_id": archive_id, "kind": kind, "parameters": parameters}
    return int(connection.execute(statement, values).scalar_one())


def add_once(connection: Connection, archive_id: int, kind: Kind) -> None:
    """Ask for a job without parameters, if none of its kind is open for the archive."""
    waiting = list_jobs(connection, archive_id, ("queued", "running"), MOST_OPEN)
    if not any(job.kind == kind for job in waiting):
        add(connection, archive_id, kind, {})


def forget(connection: Connection) -> None:
    """Delete jobs that have been over for long."""
    connection.execute(
        text("DELETE FROM job WHERE finished_at < now() - make_interval(days => :days)"), {"days": KEPT_DAYS}
    )


def get(connection: Connection, job_id: int) -> JobInfo:
    """One job. Raises JobNotFound."""
    row = connection.execute(text(_JOB + "WHERE job.id = :id"), {"id": job_id}).one_or_none()
    if row is None:
        raise JobNotFound(f"there is no job {job_id}")
    return _info(row)


def list_jobs(
    connection: Connection, archive_id: int | None, states: Sequence[State], limit: int, before: int | None = None
) -> list[JobInfo]:
    """The latest jobs first, of one archive or of all, in one of `states` (none: in any), with ids below `before`."""
    rows = connection.execute(
        text(f"""
            {_JOB} WHERE (CAST(:archive_id AS integer) IS NULL OR job.archive_id = :archive_id)
            AND (CAST(:states AS text[]) = '{{}}' OR job.state = ANY(:states))
            AND (CAST(:before AS bigint) IS NULL OR job.id < :before) ORDER BY job.id DESC LIMIT :limit
        """),
        {"archive_id": archive_id, "states": list(states), "limit": limit, "before": before},
    )
    return [_info(row) for row in rows]


def take(connection: Connection) -> JobInfo | None:
    """The oldest job that is due and that nobody holds: it is this connection's from here on, until `release`.

    What it changes is committed. A job that has lost its runner too often is marked as failed.
    """
    skip: list[int] = []
    while True:
        with connection.begin():
            row = connection.execute(
                text("""
                    SELECT id, attempts FROM job
                    WHERE state IN ('queued', 'running') AND run_after <= now() AND NOT id = ANY(:skip)
                    ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED
                """),
                {"skip": skip},
            ).one_or_none()
            if row is None:
                return None
            if not connection.execute(text("SELECT pg_try_advisory_lock(:space, :id)"), _key(row.id)).scalar_one():
                skip.append(row.id)  # somebody is at it
                continue
            if row.attempts < ATTEMPTS:
                connection.execute(
                    text("""
                        UPDATE job SET state = 'running', attempts = attempts + 1,
                            started_at = coalesce(started_at, now()) WHERE id = :id
                    """),
                    {"id": row.id},
                )
                return get(connection, row.id)
            message = f"whoever was doing it has died {row.attempts} times"
            finish(connection, row.id, "failed", error={"code": "job_died", "message": message})
            release(connection, row.id)


def tell(connection: Connection, job_id: int, progress: dict[str, Any]) -> bool:
    """Say where a job is; whether it is to be given up."""
    statement = text("UPDATE job SET progress = :progress WHERE id = :id RETURNING cancel_wanted").bindparams(
        bindparam("progress", type_=JSONB)
    )
    return connection.execute(statement, {"progress": progress, "id": job_id}).scalar_one_or_none() is not False


def finish(
    connection: Connection,
    job_id: int,
    state: Literal["done", "failed", "cancelled"],
    *,
    report: dict[str, Any] | None = None,
    error: dict[str, Any] | None = None,
) -> None:
    """Nothing more will be done for a job."""
    statement = text("""
        UPDATE job SET state = :state, report = :report, error = :error, finished_at = now() WHERE id = :id
    """).bindparams(
        bindparam("report", type_=JSONB(none_as_null=True)), bindparam("error", type_=JSONB(none_as_null=True))
    )
    connection.execute(statement, {"state": state, "report": report, "error": error, "id": job_id})


def put_off(connection: Connection, job_id: int, seconds: float, *, counts: bool) -> None:
    """A job that cannot be done now is due again in so many seconds; whether that `counts` as an attempt."""
    connection.execute(
        text("""
            UPDATE job SET state = 'queued', run_after = now() + make_interval(secs => :seconds),
                attempts = attempts - CAST(:back AS integer) WHERE id = :id
        """),
        {"seconds": seconds, "back": 0 if counts else 1, "id": job_id},
    )


def release(connection: Connection, job_id: int) -> None:
    """Let go of a job."""
    connection.execute(text("SELECT pg_advisory_unlock(:space, :id)"), _key(job_id))


def cancel(connection: Connection, job_id: int) -> JobInfo:
    """Ask that a job be given up: at once where it waits, soon where it runs. Raises JobNotFound, JobFinished."""
    row = connection.execute(
        text("""
            UPDATE job SET cancel_wanted = true,
                state = CASE WHEN state = 'queued' THEN 'cancelled' ELSE state END,
                finished_at = CASE WHEN state = 'queued' THEN now() ELSE finished_at END
            WHERE id = :id AND state IN ('queued', 'running') RETURNING id
        """),
        {"id": job_id},
    ).one_or_none()
    job = get(connection, job_id)
    if row is None:
        raise JobFinished(f"the job {job_id} is {job.state} already")
    return job


def _key(job_id: int) -> dict[str, int]:
    return {"space": _LOCK, "id": job_id % 2**31}


def _info(row: Row[Any]) -> JobInfo:
    return JobInfo(**row._mapping)
