"""Many clips at once, each a query of its own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

from fastapi import APIRouter, File, UploadFile

from service.clips import Clip
from service.deps import Backend, BackendDep
from service.errors import CLIP_ERRORS, DecoderFailed, TooManyClips, UploadTooLarge, code_of, message_of
from service.routes.asking import ERRORS, WantedDep, source
from service.schemas import BatchAnswerOut, BatchOut, ErrorBody
from service.search.answer import Answer, Request
from service.views import search_out

router = APIRouter(prefix="/v1/search", tags=["search"])

MOST_BROKEN = 3  # clips of a batch that may break a decoder, each after all of its time; the others are not tried then


@router.post("/batch", operation_id="search_batch", responses=ERRORS)
def batch(
    backend: BackendDep,
    wanted: WantedDep,
    file: Annotated[list[UploadFile], File(description="clips, each a query of its own")],
) -> BatchOut:
    """Answers to all clips; one that cannot be searched has its error in the answer's place."""
    if len(file) > backend.settings.max_batch:
        raise TooManyClips(f"{len(file)} clips, where {backend.settings.max_batch} are allowed", "file")
    began = time.perf_counter()
    asked = [clip if isinstance(clip, Exception) else wanted.request([clip]) for clip in _clips(file, backend)]
    requests = [one for one in asked if isinstance(one, Request)]
    found = iter(backend.search.search_many(requests) if requests else [])
    answers = [
        _answer_out(upload.filename or "", one if isinstance(one, Exception) else next(found))
        for upload, one in zip(file, asked, strict=True)
    ]
    seconds = time.perf_counter() - began
    return BatchOut(answers=answers, total_ms=round(seconds * 1e3, 2), queries_per_second=round(len(file) / seconds, 2))


def _clips(uploads: Sequence[UploadFile], backend: Backend) -> list[Clip | Exception]:
    """The clips, or what is wrong with them; as many at once as there are decoders. Raises TooBusy."""
    broken: list[DecoderFailed] = []

    def read(upload: UploadFile) -> Clip | Exception:
        if len(broken) >= MOST_BROKEN:
            return broken[-1]
        try:
            return backend.decoders.read_clip(source(upload, backend.settings), backend.settings.max_query_s)
        except (*CLIP_ERRORS, UploadTooLarge) as error:
            if isinstance(error, DecoderFailed):
                broken.append(error)
            return error

    with ThreadPoolExecutor(min(len(uploads), backend.decoders.count) or 1) as threads:
        return list(threads.map(read, uploads))


def _answer_out(name: str, found: Answer | Exception) -> BatchAnswerOut:
    if isinstance(found, Exception):
        return BatchAnswerOut(file=name, error=ErrorBody(code=code_of(found), message=message_of(found)))
    return BatchAnswerOut(file=name, answer=search_out(found))
