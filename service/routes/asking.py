"""What all search routes are asked in: the form of a question, read into examples and limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import Depends, File, Form, UploadFile
from pydantic import JsonValue

from service.clips import Clip
from service.deps import BackendDep
from service.errors import BadRequest, TooManyClips, UploadTooLarge
from service.routes.responses import errors
from service.routes.texts import WhereForm
from service.schemas import MAX_ID
from service.search.answer import Request
from service.search.query import Reference
from service.settings import Settings

MAX_LIMIT = 1_000
Rescore = Literal["codes", "deep"]
ERRORS = errors(400, 404, 409, 413, 422, 503)


@dataclass(frozen=True)
class Wanted:
    """Which archive is asked, and how much is to be answered."""

    archive: str
    limit: int
    min_score: float
    exact: bool
    deep: bool
    where: dict[str, JsonValue] | None

    def request(self, examples: Sequence[Clip | Reference], **more: Any) -> Request:
        """The question about these examples."""
        limits = (self.limit, self.min_score, self.exact)
        return Request(examples, self.archive, *limits, where=self.where, deep=self.deep, **more)


async def wanted(
    where: WhereForm,
    archive: Annotated[str, Form()] = "default",
    limit: Annotated[int, Form(ge=1, le=MAX_LIMIT)] = 20,
    min_score: Annotated[float, Form(ge=0.0, le=1.0)] = 0.0,
    exact: Annotated[bool, Form(description="look at every segment")] = False,
    rescore: Annotated[
        Rescore, Form(description="deep: read the sound of the first hits again, with another tokenizer")
    ] = "codes",
) -> Wanted:
    """What is wanted, from the form."""
    return Wanted(archive, limit, min_score, exact, rescore == "deep", where)


WantedDep = Annotated[Wanted, Depends(wanted)]


def examples(
    backend: BackendDep,
    file: Annotated[
        list[UploadFile] | None, File(description="a clip of the term; repeat it for more examples")
    ] = None,
    recording: Annotated[
        int | None,
        Form(
            ge=0,
            le=MAX_ID,
            description="in place of a clip: the id of a recording, of which start to end is the term",
        ),
    ] = None,
    start: Annotated[float | None, Form(ge=0.0, description="seconds; the term begins here in the clip")] = None,
    end: Annotated[float | None, Form(gt=0.0, description="seconds; the term ends here in the clip")] = None,
) -> list[Clip | Reference]:
    """The examples of a question: clips, or a stretch of an indexed recording."""
    if recording is not None:
        if file:
            raise BadRequest("a clip or a recording is asked about, not both", "recording")
        if start is None or end is None:
            raise BadRequest("a stretch of a recording has a start and an end", "end" if start is not None else "start")
        return [Reference(recording, start, end)]
    if not file:
        raise BadRequest("a clip, or a recording with start and end, is needed", "file")
    if len(file) > backend.settings.max_clips:
        raise TooManyClips(f"{len(file)} clips, where {backend.settings.max_clips} are allowed", "file")
    longest_s = backend.settings.max_query_s
    return [backend.decoders.read_clip(source(upload, backend.settings), longest_s, start, end) for upload in file]


ExamplesDep = Annotated[list[Clip | Reference], Depends(examples)]


def source(upload: UploadFile, settings: Settings) -> bytes:
    """The bytes of an upload. Raises UploadTooLarge."""
    limit = int(settings.max_upload_mb * 1e6)
    if upload.size is not None and upload.size > limit:
        raise UploadTooLarge(f"{upload.size / 1e6:.0f} MB, where {settings.max_upload_mb:g} MB are allowed", "file")
    return upload.file.read()
