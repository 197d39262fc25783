"""GET /metrics, for Prometheus."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from service.deps import BackendDep
from service.metrics import Metrics, gauges_of, gauges_of_replica
from service.surroundings import LOOK_S

router = APIRouter(tags=["health"])


@router.get("/metrics", operation_id="metrics", response_class=Response)
async def metrics(request: Request, backend: BackendDep) -> Response:
    """Counts and latencies of requests and searches, archives, jobs and processes, in Prometheus's text format."""
    counted: Metrics = request.app.state.metrics
    at = backend.surroundings
    database, folder, replica = await asyncio.gather(
        at.database.within(LOOK_S),
        at.folder.within(LOOK_S),
        asyncio.sleep(0) if at.replica is None else at.replica.within(LOOK_S),
    )
    gauges = gauges_of(database, folder, backend.search.tokenizer.info)
    if at.replica is not None:
        gauges += gauges_of_replica(replica)
    # Not in one of the threads that requests share: it is to be answered while they are all at work.
    text = await asyncio.to_thread(counted.text, gauges)
    return Response(text, media_type=CONTENT_TYPE_LATEST)
