"""Search again, with hits that somebody has listened to and marked."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form
from pydantic import TypeAdapter

from service.deps import BackendDep
from service.errors import BadRequest
from service.routes.asking import ERRORS, ExamplesDep, WantedDep
from service.routes.texts import read_json
from service.schemas import MarkIn, SearchOut
from service.search.query import Reference
from service.views import search_out

router = APIRouter(prefix="/v1/search", tags=["search"])

_MARKS = TypeAdapter(list[MarkIn])
_FORM = 'a JSON list of {"recording": id, "start": s, "end": s}'


@router.post("/refine", operation_id="refine", responses=ERRORS)
def refine(
    backend: BackendDep,
    wanted: WantedDep,
    examples: ExamplesDep,
    right: Annotated[str, Form(description=f"hits that are right: {_FORM}")] = "[]",
    wrong: Annotated[str, Form(description=f"hits that are wrong: {_FORM}")] = "[]",
) -> SearchOut:
    """The same search in a better order: right hits are further examples, wrong ones and what is like them fall."""
    most = backend.settings.max_marks
    marks = {"right": _marks(right, "right", most), "wrong": _marks(wrong, "wrong", most)}
    if not any(marks.values()):
        raise BadRequest("no hit is marked right or wrong", "right")
    return search_out(backend.search.search(wanted.request(examples, **marks)))


def _marks(text: str, field: str, most: int) -> list[Reference]:
    marks = read_json(_MARKS, text, field, _FORM)
    if len(marks) > most:
        raise BadRequest(f"{len(marks)} hits are marked, where {most} are allowed", field)
    return [Reference(mark.recording, mark.start, mark.end) for mark in marks]
