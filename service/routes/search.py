"""POST /v1/search."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, File, Form, UploadFile

from service.clips import Clip, read_clip
from service.deps import BackendDep
from service.errors import BadRequest, TooManyClips, UploadTooLarge
from service.schemas import ErrorOut, SearchOut
from service.search.answer import Request
from service.search.query import Reference
from service.settings import Settings
from service.views import search_out

router = APIRouter(prefix="/v1/search", tags=["search"])

MAX_LIMIT = 1_000


@router.post(
    "",
    operation_id="search",
    responses={code: {"model": ErrorOut} for code in (400, 404, 409, 413, 422, 503)},
)
def search(
    backend: BackendDep,
    file: Annotated[
        list[UploadFile] | None, File(description="a clip of the term; repeat it for more examples")
    ] = None,
    archive: Annotated[str, Form()] = "default",
    recording: Annotated[
        int | None, Form(description="in place of a clip: the id of a recording, of which start to end is the term")
    ] = None,
    limit: Annotated[int, Form(ge=1, le=MAX_LIMIT)] = 20,
    min_score: Annotated[float, Form(ge=0.0, le=1.0)] = 0.0,
    start: Annotated[float | None, Form(ge=0.0, description="seconds; the term begins here in the clip")] = None,
    end: Annotated[float | None, Form(gt=0.0, description="seconds; the term ends here in the clip")] = None,
    exact: Annotated[bool, Form(description="look at every segment")] = False,
) -> SearchOut:
    """Every place in the archive where the term of the clip is said, or that of a stretch of one of its recordings."""
    if recording is not None:
        if file:
            raise BadRequest("a clip or a recording is asked about, not both", "recording")
        if start is None or end is None:
            raise BadRequest("a stretch of a recording has a start and an end", "end" if start is not None else "start")
        examples: list[Clip | Reference] = [Reference(recording, start, end)]
        return search_out(backend.search.search(Request(examples, archive, limit, min_score, exact)))
    if not file:
        raise BadRequest("a clip, or a recording with start and end, is needed", "file")
    if len(file) > backend.settings.max_clips:
        raise TooManyClips(f"{len(file)} clips, where {backend.settings.max_clips} are allowed", "file")
    longest_s = backend.settings.max_query_s
    clips = [read_clip(_source(upload, backend.settings), longest_s, start, end) for upload in file]
    answer = backend.search.search(Request(clips, archive, limit, min_score, exact))
    return search_out(answer)


def _source(upload: UploadFile, settings: Settings) -> bytes:
    limit = int(settings.max_upload_mb * 1e6)
    if upload.size is not None and upload.size > limit:
        raise UploadTooLarge(f"{upload.size / 1e6:.0f} MB, where {settings.max_upload_mb:g} MB are allowed", "file")
    return upload.file.read()
