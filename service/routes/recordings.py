"""Recordings of an archive: sent in, listed, shown, described and deleted."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, File, Form, Query, Response, UploadFile
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from indexer import intake, store
from indexer.intake import Description
from indexer.recordings import Filter, delete_recording, get_recording, list_recordings
from service.access import WRITE
from service.deps import BackendDep, RecordingDep
from service.errors import BadRequest
from service.gate import body_up_to
from service.jobs import uploads
from service.jobs.schemas import JobOut, job_out
from service.routes.responses import errors
from service.routes.texts import WhereQuery, read_json
from service.schemas import MAX_ID, DescriptionIn, ExternalId, Metadata, RecordingOut, RecordingsOut
from service.views import recording_out

router = APIRouter(prefix="/v1/recordings", tags=["recordings"])

MOST_FILES = 100  # of one upload


class AboutIn(BaseModel):
    """What is said of a recording that is sent in; without a name it has that of its file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str | None = Field(default=None, min_length=1)
    metadata: Metadata | None = None
    external_id: ExternalId | None = None


_ABOUT = TypeAdapter(list[AboutIn])


@router.post(
    "",
    operation_id="upload_recordings",
    status_code=202,
    responses=errors(404, 409, 413, 422, 503, 507),
    dependencies=[WRITE, body_up_to("max_recordings_mb")],
)
def upload(
    backend: BackendDep,
    response: Response,
    file: Annotated[list[UploadFile], File(description="a recording; repeat it for more")],
    archive: Annotated[str, Form(max_length=200, description="made where there is none of that name")] = "default",
    about: Annotated[
        str,
        Form(description='a JSON list, one {"name": ..., "metadata": {...}, "external_id": ...} for each file in turn'),
    ] = "[]",
    replace: Annotated[bool, Form(description="take the place of recordings of the same names")] = False,
) -> JobOut:
    """Add recordings to an archive: they are kept in the data folder, and a job indexes them."""
    said = read_json(_ABOUT, about, "about")
    if len(file) > MOST_FILES or len(said) > len(file):
        raise BadRequest(f"{len(file)} files, of which {MOST_FILES} are allowed, and {len(said)} descriptions", "about")
    sent = []
    for upload, one in zip(file, said + [AboutIn()] * (len(file) - len(said)), strict=True):
        name = uploads.check_name(one.name or upload.filename or "")
        sent.append(uploads.Sent(name, upload.file, one.metadata, one.external_id))
    with backend.connect() as connection:
        job = uploads.receive(connection, backend, archive, sent, replace=replace)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job_out(job)


@router.get("", operation_id="list_recordings", responses=errors(404, 422, 503))
def list_(
    backend: BackendDep,
    where: WhereQuery,
    archive: str = "default",
    contains: Annotated[str | None, Query(max_length=200, description="part of the name")] = None,
    external_id: Annotated[str | None, Query(max_length=200, description="the recording that has this id")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Annotated[int, Query(ge=0, le=MAX_ID)] = 0,
) -> RecordingsOut:
    """One page of an archive's recordings, by name."""
    asked = Filter(contains, where, external_id)
    with backend.reading() as connection:
        found = store.get_archive(connection, archive)
        page = list_recordings(connection, found.id, limit + 1, offset, asked)
    more = offset + limit if len(page) > limit else None
    return RecordingsOut(
        archive=archive, recordings=[recording_out(recording) for recording in page[:limit]], next_offset=more
    )


@router.delete(
    "",
    operation_id="delete_recording_by_name",
    status_code=204,
    responses=errors(404, 422, 503),
    dependencies=[WRITE],
)
def delete_by_name(
    backend: BackendDep,
    name: Annotated[str | None, Query(description="as it is listed")] = None,
    external_id: Annotated[str | None, Query(max_length=200, description="in place of the name")] = None,
    archive: str = "default",
) -> None:
    """Delete a recording from the index, by its name or by its owner's id; its file may be gone already.

    The file is not touched, but for one that was sent in: that goes too.
    """
    if (name is None) == (external_id is None):
        raise BadRequest("a recording's name or its external id is needed, and not both", "name")
    with backend.connect() as connection:
        found = store.get_archive(connection, archive)
        if name is not None:
            recording = get_recording(connection, found.id, name)
        else:
            listed = list_recordings(connection, found.id, 1, 0, Filter(external_id=external_id))
            if not listed:
                raise store.RecordingNotFound(f"there is no recording with the id {external_id!r} in the archive")
            recording = listed[0]
    delete(backend, recording)


@router.get("/{recording}", operation_id="show_recording", responses=errors(404, 422, 503))
def show(recording: RecordingDep) -> RecordingOut:
    """One recording."""
    return recording_out(recording)


@router.patch(
    "/{recording}",
    operation_id="describe_recording",
    responses=errors(404, 409, 422, 503),
    dependencies=[WRITE],
)
def describe(backend: BackendDep, recording: RecordingDep, said: DescriptionIn) -> RecordingOut:
    """Change what its owner says of a recording; metadata are replaced as a whole."""
    changes = said.model_dump(exclude_unset=True)
    description = Description(changes.get("metadata"), changes.get("external_id", ...))
    with backend.connect() as connection:
        intake.describe(connection, recording.archive_id, recording.id, description)
        changed = get_recording(connection, recording.archive_id, recording.id)
        connection.commit()
    return recording_out(changed)


@router.delete(
    "/{recording}",
    operation_id="delete_recording",
    status_code=204,
    responses=errors(404, 422, 503),
    dependencies=[WRITE],
)
def delete(backend: BackendDep, recording: RecordingDep) -> None:
    """Delete a recording from the index.

    Its file, which may be gone already, is not touched, but for one that was sent in: that goes too.
    """
    with backend.connect() as connection:
        delete_recording(connection, recording.archive_id, recording.id)
        connection.commit()
    uploads.drop(backend.settings.home_path, [recording.path])
