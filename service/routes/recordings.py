"""GET /v1/recordings."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from indexer import store
from service.deps import ConnectionDep
from service.schemas import MAX_ID, RecordingsOut
from service.views import recording_out

router = APIRouter(prefix="/v1/recordings", tags=["recordings"])


@router.get("", operation_id="list_recordings")
def list_recordings(
    connection: ConnectionDep,
    archive: str = "default",
    contains: Annotated[str | None, Query(max_length=200, description="part of the name")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Annotated[int, Query(ge=0, le=MAX_ID)] = 0,
) -> RecordingsOut:
    """One page of an archive's recordings, by name."""
    found = store.get_archive(connection, archive)
    page = store.list_recordings(connection, found.id, limit + 1, offset, contains)
    more = offset + limit if len(page) > limit else None
    return RecordingsOut(
        archive=archive, recordings=[recording_out(recording) for recording in page[:limit]], next_offset=more
    )
