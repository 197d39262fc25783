"""GET /healthz (alive) and GET /readyz (would answer, or why not); neither waits for a thread or for the database."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Response

from indexer.database import SchemaOutdated
from service.deps import BackendDep
from service.errors import message_of
from service.replica import ReplicaSeen
from service.schemas import HealthOut, ReadyOut, ReplicaOut
from service.surroundings import LOOK_S, DatabaseSeen, FolderSeen

MOST_NAMED = 5

router = APIRouter(tags=["health"])


@router.get("/healthz", operation_id="health")
async def health() -> HealthOut:
    """The process is alive."""
    return HealthOut()


@router.get("/readyz", operation_id="readiness", responses={503: {"model": ReadyOut}}, response_model_exclude_none=True)
async def ready(backend: BackendDep, response: Response) -> ReadyOut:
    """Whether searches are answered: 503 with the reasons if not. Warnings are of what a part of them fails by."""
    surroundings = backend.surroundings
    replica = surroundings.replica
    seen, folder, behind = await asyncio.gather(
        surroundings.database.within(LOOK_S),
        surroundings.folder.within(LOOK_S),
        asyncio.sleep(0) if replica is None else replica.within(LOOK_S),
    )
    state, reasons = _database(seen)
    warnings = [*_folder(folder, backend.settings.min_free_mb), *_tokenizers(seen)]
    if backend.settings.device != (device := backend.search.tokenizer.device):
        warnings.append(
            f"no {backend.settings.device} device that ONNX Runtime can use: tokenizers run on the {device}"
        )
    shown = None
    if replica is not None:
        shown, told = _replica(behind, backend.settings.replica_lag_s)
        warnings += told
    response.status_code = 503 if reasons else 200
    info = backend.search.tokenizer.info
    return ReadyOut(
        ready=not reasons,
        database=state,
        tokenizer=f"{info.name} {info.version}",
        replica=shown,
        reasons=reasons,
        warnings=warnings,
    )


def _database(seen: DatabaseSeen | None) -> tuple[str, list[str]]:
    """In a word, and why it cannot be used."""
    if seen is None:
        return "unavailable", [f"the database does not answer within {LOOK_S:g} s"]
    if seen.problem is None:
        return "ok", []
    return "outdated" if isinstance(seen.problem, SchemaOutdated) else "unavailable", [message_of(seen.problem)]


def _replica(seen: ReplicaSeen | None, most_s: float) -> tuple[ReplicaOut, list[str]]:
    """How far it is behind, and what there is to say of that; reads go on, by the primary where need be."""
    if seen is None:
        return ReplicaOut(state="unavailable"), [f"the replica does not answer within {LOOK_S:g} s"]
    if seen.problem is not None:
        return ReplicaOut(state="unavailable"), [f"the replica: {seen.problem}"]
    behind = seen.lag_s > most_s
    out = ReplicaOut(state="behind" if behind else "ok", lag_seconds=round(seen.lag_s, 3), lag_bytes=seen.lag_bytes)
    return out, [f"the replica is {seen.lag_s:.0f} s behind"] if behind else []


def _folder(seen: FolderSeen | None, least_mb: float) -> list[str]:
    """What is amiss with the data folder; searches go on, with local indexes in memory."""
    if seen is None:
        return [f"the data folder does not answer within {LOOK_S:g} s"]
    if seen.problem is not None:
        return [f"nothing can be written in the data folder: {seen.problem}"]
    if seen.free_bytes < least_mb * 1e6:
        return [f"the data folder is nearly full: {seen.free_bytes / 1e6:.0f} MB are free"]
    return []


def _tokenizers(seen: DatabaseSeen | None) -> list[str]:
    """Which archives cannot be searched."""
    if seen is None or not seen.missing:
        return []
    named = ", ".join(repr(name) for name in seen.missing[:MOST_NAMED])
    more = f" and {len(seen.missing) - MOST_NAMED} more" if len(seen.missing) > MOST_NAMED else ""
    return [f"archives whose tokenizer is not at hand: {named}{more}"]
