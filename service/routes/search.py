"""POST /v1/search."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, File, Form, UploadFile

from service.clips import read_clip
from service.deps import BackendDep
from service.errors import TooManyClips, UploadTooLarge
from service.schemas import ErrorOut, SearchOut
from service.search.engine import Request
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
    file: Annotated[list[UploadFile], File(description="a clip of the term; repeat it for more examples")],
    archive: Annotated[str, Form()] = "default",
    limit: Annotated[int, Form(ge=1, le=MAX_LIMIT)] = 20,
    min_score: Annotated[float, Form(ge=0.0, le=1.0)] = 0.0,
    start: Annotated[float | None, Form(ge=0.0, description="seconds; the term begins here in the clip")] = None,
    end: Annotated[float | None, Form(gt=0.0, description="seconds; the term ends here in the clip")] = None,
    exact: Annotated[bool, Form(description="look at every segment")] = False,
) -> SearchOut:
    """Every place in the archive where the term of the clip is said."""
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
