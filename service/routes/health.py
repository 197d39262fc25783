"""GET /healthz (alive) and GET /readyz (would answer, or why not)."""

from __future__ import annotations

from fastapi import APIRouter, Response

from indexer import database
from service.deps import BackendDep
from service.errors import message_of
from service.schemas import HealthOut, ReadyOut

router = APIRouter(tags=["health"])


@router.get("/healthz", operation_id="health")
def health() -> HealthOut:
    """The process is alive."""
    return HealthOut()


@router.get("/readyz", operation_id="readiness", responses={503: {"model": ReadyOut}})
def ready(backend: BackendDep, response: Response) -> ReadyOut:
    """Whether the database answers with a current schema; 503 with the reasons if not."""
    reasons: list[str] = []
    try:
        database.check(backend.database)
    except database.DatabaseError as error:
        reasons.append(message_of(error))
    response.status_code = 503 if reasons else 200
    info = backend.search.tokenizer.info
    return ReadyOut(
        ready=not reasons,
        database="unavailable" if reasons else "ok",
        tokenizer=f"{info.name} {info.version}",
        reasons=reasons,
    )
