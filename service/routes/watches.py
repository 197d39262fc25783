"""Watches: stored queries by which each new recording is searched."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Path, Query

from indexer import store
from indexer.recordings import get_recording, recordings_by_id
from service import sound
from service.access import WRITE
from service.clips import Clip
from service.deps import Backend, BackendDep
from service.routes.asking import ERRORS, ExamplesDep
from service.routes.responses import errors
from service.schemas import MAX_ID
from service.search.query import Reference
from service.search.trim import trim
from service.watches import watches, webhooks
from service.watches.schemas import (
    DeliveriesOut,
    WatchesOut,
    WatchHitsOut,
    WatchMadeOut,
    WatchOut,
    delivery_out,
    hit_out,
    watch_out,
)

router = APIRouter(prefix="/v1/watches", tags=["watches"])

WatchPath = Annotated[int, Path(ge=0, le=MAX_ID)]


@router.post("", operation_id="create_watch", status_code=201, responses=ERRORS, dependencies=[WRITE])
def create(
    backend: BackendDep,
    examples: ExamplesDep,
    name: Annotated[str, Form(min_length=1, max_length=200)],
    archive: Annotated[str, Form()] = "default",
    min_score: Annotated[float, Form(ge=0.0, le=1.0)] = 0.3,
    webhook: Annotated[str | None, Form(description="a URL that is told of new hits")] = None,
) -> WatchMadeOut:
    """Search each recording that comes from now on; asked with clips or a stretch, as a search is."""
    if webhook is not None:
        webhooks.check_url(webhook, private=backend.settings.webhook_private)
    clips = [_heard(example, backend, archive) for example in examples]
    with backend.connect() as connection:
        found = store.get_archive(connection, archive)
        number, secret = watches.add(connection, found, name, clips, min_score, webhook)
        made = watches.get(connection, number)
        connection.commit()
    shown = None if secret is None else webhooks.secret_text(secret)
    return WatchMadeOut(**watch_out(made).model_dump(), secret=shown)


@router.get("", operation_id="list_watches", responses=errors(404, 422, 503))
def list_watches(
    backend: BackendDep,
    archive: Annotated[str | None, Query(max_length=200, description="without it, of all archives")] = None,
) -> WatchesOut:
    """All watches, by age."""
    with backend.connect() as connection:
        archive_id = None if archive is None else store.get_archive(connection, archive).id
        return WatchesOut(watches=[watch_out(watch) for watch in watches.list_watches(connection, archive_id)])


@router.get("/{watch}", operation_id="show_watch", responses=errors(404, 422, 503))
def show(backend: BackendDep, watch: WatchPath) -> WatchOut:
    """One watch."""
    with backend.connect() as connection:
        return watch_out(watches.get(connection, watch))


@router.get("/{watch}/hits", operation_id="list_watch_hits", responses=errors(404, 422, 503))
def hits(
    backend: BackendDep,
    watch: WatchPath,
    limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
    before: Annotated[int | None, Query(ge=0, le=MAX_ID, description="hits that are older than this one")] = None,
) -> WatchHitsOut:
    """What a watch has found, the latest first."""
    with backend.connect() as connection:
        watches.get(connection, watch)
        page = watches.hits_of(connection, watch, limit + 1, before)
        recordings = recordings_by_id(connection, {hit.recording_id for hit in page})
    more = page[limit - 1].id if len(page) > limit else None
    shown = [hit_out(hit, recordings[hit.recording_id]) for hit in page[:limit] if hit.recording_id in recordings]
    return WatchHitsOut(hits=shown, next_before=more)


@router.get("/{watch}/deliveries", operation_id="list_watch_deliveries", responses=errors(404, 422, 503))
def deliveries(
    backend: BackendDep, watch: WatchPath, limit: Annotated[int, Query(ge=1, le=1_000)] = 100
) -> DeliveriesOut:
    """What a watch's webhook was told, the latest first."""
    with backend.connect() as connection:
        watches.get(connection, watch)
        told = watches.deliveries_of(connection, watch, limit)
    return DeliveriesOut(deliveries=[delivery_out(delivery) for delivery in told])


@router.delete(
    "/{watch}", operation_id="delete_watch", status_code=204, responses=errors(404, 422, 503), dependencies=[WRITE]
)
def delete(backend: BackendDep, watch: WatchPath) -> None:
    """Delete a watch with what it has found."""
    with backend.connect() as connection:
        watches.delete(connection, watch)
        connection.commit()


def _heard(example: Clip | Reference, backend: Backend, archive: str) -> Clip:
    """The sound of an example. Raises NoSpeech, RecordingNotFound, AudioGone, BadStretch, QueryTooLong."""
    if isinstance(example, Reference):
        with backend.connect() as connection:
            found = store.get_archive(connection, archive)
            recording = get_recording(connection, found.id, example.recording)
        path = sound.path_of(recording)
        longest_s = backend.settings.max_query_s
        example = backend.decoders.read_clip(path, longest_s, example.start_s, example.end_s)
    trim(example.samples)
    return example
