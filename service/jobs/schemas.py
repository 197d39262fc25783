"""What goes over HTTP about jobs."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from service.jobs.queue import JobInfo, Kind, State
from service.schemas import ErrorBody, Out


class FileFailureOut(Out):
    """A file that could not be indexed."""

    name: str
    code: str
    message: str


class IndexReportOut(Out):
    """What a job did."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    indexed: int
    unchanged: int
    moved: int
    removed: tuple[str, ...] = ()  # names
    failed: list[FileFailureOut]
    audio_s: float
    wall_s: float


class JobProgressOut(Out):
    """Where a job is: seconds of audio done and in all (0 where that is not known), seconds gone, files failed."""

    stage: str
    done_s: float
    total_s: float
    wall_s: float
    failed: int


class JobOut(Out):
    """Something that is done in the background."""

    id: int
    kind: Kind
    archive: str
    state: State
    cancel_wanted: bool
    progress: JobProgressOut | None
    report: IndexReportOut | None
    error: ErrorBody | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class JobsOut(Out):
    """The latest jobs first; `next_before` asks for older ones, and is null where there are none."""

    jobs: list[JobOut]
    next_before: int | None


class FolderJobIn(BaseModel):
    """A folder of the server, or a file, to be indexed into an archive, which is made where there is none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    archive: str = Field(default="default", min_length=1, max_length=200)
    folder: str = Field(min_length=1, max_length=4_000, description="below one of the roots in the settings")
    prune: bool = Field(default=False, description="remove recordings whose file lay in it and is gone")


def job_out(job: JobInfo) -> JobOut:
    """A job as it is told of."""
    return JobOut.model_validate(vars(job))
