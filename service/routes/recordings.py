"""Recordings of an archive: listed, shown and deleted."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from indexer import store
from service.access import WRITE
from service.deps import BackendDep, RecordingDep
from service.routes.responses import errors
from service.schemas import MAX_ID, RecordingOut, RecordingsOut
from service.views import recording_out

router = APIRouter(prefix="/v1/recordings", tags=["recordings"])


@router.get("", operation_id="list_recordings", responses=errors(404, 422, 503))
def list_recordings(
    backend: BackendDep,
    archive: str = "default",
    contains: Annotated[str | None, Query(max_length=200, description="part of the name")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Annotated[int, Query(ge=0, le=MAX_ID)] = 0,
) -> RecordingsOut:
    """One page of an archive's recordings, by name."""
    with backend.connect() as connection:
        found = store.get_archive(connection, archive)
        page = store.list_recordings(connection, found.id, limit + 1, offset, contains)
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
    name: Annotated[str, Query(description="as it is listed")],
    archive: str = "default",
) -> None:
    """Delete a recording from the index; its file, which may be gone already, is not touched."""
    with backend.connect() as connection:
        store.delete_recording(connection, store.get_archive(connection, archive).id, name)
        connection.commit()


@router.get("/{recording}", operation_id="show_recording", responses=errors(404, 422, 503))
def show(recording: RecordingDep) -> RecordingOut:
    """One recording."""
    return recording_out(recording)


@router.delete(
    "/{recording}",
    operation_id="delete_recording",
    status_code=204,
    responses=errors(404, 422, 503),
    dependencies=[WRITE],
)
def delete(backend: BackendDep, recording: RecordingDep) -> None:
    """Delete a recording from the index; its file, which may be gone already, is not touched."""
    with backend.connect() as connection:
        store.delete_recording(connection, recording.archive_id, recording.id)
        connection.commit()
