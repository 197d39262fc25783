"""What goes over HTTP about watches, and what webhooks are told."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

from indexer.recordings import RecordingInfo
from service.schemas import HitRecordingOut, Out
from service.search.answer import Hit
from service.search.ranking import SCORE_DIGITS
from service.views import hit_recording_out
from service.watches.watches import Delivery, WatchHit, WatchInfo


class WatchOut(Out):
    """A stored query; `hits` counts what it has found."""

    id: int
    name: str
    archive: str
    min_score: float
    webhook: str | None
    hits: int
    created_at: datetime


class WatchMadeOut(WatchOut):
    """A new watch; `secret` signs what its webhook is told, and is shown this once."""

    secret: str | None


class WatchesOut(Out):
    """All watches."""

    watches: list[WatchOut]


class WatchHitOut(Out):
    """A place that a watch has found, in seconds."""

    id: int
    recording: HitRecordingOut
    start: float
    end: float
    score: float
    found_at: datetime


class WatchHitsOut(Out):
    """The latest hits first; `next_before` asks for older ones, and is null where there are none."""

    hits: list[WatchHitOut]
    next_before: int | None


class DeliveryOut(Out):
    """What was, or is to be, told to a webhook; `problem` is what was wrong last time."""

    id: int
    state: Literal["waiting", "delivered", "failed"]
    attempts: int
    problem: str | None
    created_at: datetime
    next_at: datetime | None


class DeliveriesOut(Out):
    """The latest deliveries first."""

    deliveries: list[DeliveryOut]


class MessageHitOut(Out):
    """A hit in a message."""

    recording: HitRecordingOut
    start: float
    end: float
    score: float


class WatchRefOut(Out):
    """Which watch."""

    id: int
    name: str


class WatchMessageOut(Out):
    """What a webhook is told."""

    type: Literal["watch.hits"] = "watch.hits"
    timestamp: datetime
    watch: WatchRefOut
    archive: str
    hits: list[MessageHitOut]


def watch_out(watch: WatchInfo) -> WatchOut:
    """A watch as it is told of."""
    return WatchOut.model_validate(vars(watch))


def hit_out(hit: WatchHit, recording: RecordingInfo) -> WatchHitOut:
    """A hit of a watch."""
    return WatchHitOut(
        id=hit.id,
        recording=hit_recording_out(recording),
        start=round(hit.start_s, 3),
        end=round(hit.end_s, 3),
        score=round(hit.score, SCORE_DIGITS),
        found_at=hit.found_at,
    )


def delivery_out(delivery: Delivery) -> DeliveryOut:
    """A delivery as it is told of."""
    state: Literal["waiting", "delivered", "failed"] = "waiting"
    if delivery.delivered_at is not None or delivery.failed_at is not None:
        state = "delivered" if delivery.delivered_at is not None else "failed"
    return DeliveryOut(
        id=delivery.id,
        state=state,
        attempts=delivery.attempts,
        problem=delivery.problem,
        created_at=delivery.created_at,
        next_at=delivery.next_at if state == "waiting" else None,
    )


def message_of(watch: WatchInfo, hits: Sequence[Hit]) -> WatchMessageOut:
    """What a webhook is told of new hits."""
    return WatchMessageOut(
        timestamp=datetime.now(UTC),
        watch=WatchRefOut(id=watch.id, name=watch.name),
        archive=watch.archive,
        hits=[
            MessageHitOut(
                recording=hit_recording_out(hit.recording),
                start=round(hit.start_s, 3),
                end=round(hit.end_s, 3),
                score=round(hit.score, SCORE_DIGITS),
            )
            for hit in hits
        ],
    )
