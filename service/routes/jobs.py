"""Jobs: a folder of the server is to be indexed; how far all jobs are; giving them up."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from indexer import store
from service import archives
from service.access import WRITE
from service.deps import BackendDep
from service.jobs import folders, queue
from service.jobs.queue import State
from service.jobs.schemas import FolderJobIn, JobOut, JobsOut, job_out
from service.routes.responses import errors
from service.schemas import MAX_ID

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

JobPath = Annotated[int, Path(ge=0, le=MAX_ID)]


@router.post(
    "",
    operation_id="index_folder",
    status_code=202,
    responses=errors(409, 422, 503),
    dependencies=[WRITE],
)
def index_folder(backend: BackendDep, response: Response, wanted: FolderJobIn) -> JobOut:
    """Index a folder of the server, below one of the roots in the settings; what has not changed is skipped."""
    path = folders.allowed(wanted.folder, backend.settings.roots)
    with backend.connect() as connection:
        archive = archives.open_or_make(connection, backend, wanted.archive)
        parameters = {"folder": str(path), "prune": wanted.prune}
        job = queue.get(connection, queue.add(connection, archive.id, "index_folder", parameters))
        connection.commit()
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job_out(job)


@router.get("", operation_id="list_jobs", responses=errors(404, 422, 503))
def list_jobs(
    backend: BackendDep,
    archive: Annotated[str | None, Query(max_length=200, description="without it, of all archives")] = None,
    state: Annotated[list[State] | None, Query(description="repeat it for more; without it, in any")] = None,
    limit: Annotated[int, Query(ge=1, le=1_000)] = 50,
    before: Annotated[int | None, Query(ge=0, le=MAX_ID, description="jobs that are older than this one")] = None,
) -> JobsOut:
    """The latest jobs first."""
    with backend.connect() as connection:
        archive_id = None if archive is None else store.get_archive(connection, archive).id
        page = queue.list_jobs(connection, archive_id, state or [], limit + 1, before)
    more = page[limit - 1].id if len(page) > limit else None
    return JobsOut(jobs=[job_out(job) for job in page[:limit]], next_before=more)


@router.get("/{job}", operation_id="show_job", responses=errors(404, 422, 503))
def show(backend: BackendDep, job: JobPath) -> JobOut:
    """One job."""
    with backend.connect() as connection:
        return job_out(queue.get(connection, job))


@router.post("/{job}/cancel", operation_id="cancel_job", responses=errors(404, 409, 422, 503), dependencies=[WRITE])
def cancel(backend: BackendDep, job: JobPath) -> JobOut:
    """Give a job up: at once where it waits, soon where it runs. What it has indexed stays."""
    with backend.connect() as connection:
        cancelled = queue.cancel(connection, job)
        connection.commit()
    return job_out(cancelled)
