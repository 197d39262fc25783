"""Search by a clip or several, or by a stretch of an indexed recording."""

from __future__ import annotations

from fastapi import APIRouter

from service.deps import BackendDep
from service.routes.asking import ERRORS, ExamplesDep, WantedDep
from service.schemas import SearchOut
from service.views import search_out

router = APIRouter(prefix="/v1/search", tags=["search"])


@router.post("", operation_id="search", responses=ERRORS)
def search(backend: BackendDep, wanted: WantedDep, examples: ExamplesDep) -> SearchOut:
    """Every place in the archive where the term of the clip is said, or that of a stretch of one of its recordings."""
    return search_out(backend.search.search(wanted.request(examples)))
