"""From the engine's and the store's values to the JSON that leaves the house."""

from __future__ import annotations

from indexer.recordings import RecordingInfo
from indexer.store import ArchiveInfo
from service.schemas import (
    ArchiveOut,
    HitOut,
    HitRecordingOut,
    QueryOut,
    RecordingOut,
    SearchedOut,
    SearchOut,
    TimingOut,
)
from service.search.answer import Answer
from service.search.ranking import SCORE_DIGITS


def search_out(answer: Answer) -> SearchOut:
    """The answer to a query; the first clip speaks for all."""
    query = answer.query
    return SearchOut(
        query=QueryOut(
            duration=round(query.duration_s, 3),
            speech=(round(query.speech[0], 3), round(query.speech[1], 3)),
            tokens=len(query.tokens),
            tokenizer=answer.tokenizer,
        ),
        hits=[
            HitOut(
                rank=rank,
                recording=hit_recording_out(hit.recording),
                start=round(hit.start_s, 3),
                end=round(hit.end_s, 3),
                score=round(hit.score, SCORE_DIGITS),
                edit_similarity=round(hit.edit_similarity, 4),
                dtw_similarity=round(hit.dtw_similarity, 4),
                deep_similarity=None if hit.deep_similarity is None else round(hit.deep_similarity, 4),
            )
            for rank, hit in enumerate(answer.hits, 1)
        ],
        timing_ms=TimingOut(**vars(answer.timing_ms)),
        searched=SearchedOut(recordings=answer.recordings, hours=round(answer.hours, 4)),
    )


def hit_recording_out(recording: RecordingInfo) -> HitRecordingOut:
    """The recording of a hit."""
    return HitRecordingOut(
        id=recording.id,
        name=recording.name,
        duration=round(recording.duration_s, 3),
        external_id=recording.external_id,
    )


def archive_out(archive: ArchiveInfo) -> ArchiveOut:
    """An archive as it is listed."""
    return ArchiveOut(
        name=archive.name,
        recordings=archive.recordings,
        hours=round(archive.hours, 4),
        tokenizer=archive.tokenizer_name,
        tokenizer_sha256=archive.tokenizer_sha256,
        codebook=archive.codebook_kind,
        codebook_size=archive.codebook_size,
        bytes=archive.bytes,
    )


def recording_out(recording: RecordingInfo) -> RecordingOut:
    """A recording as it is listed."""
    return RecordingOut(
        id=recording.id,
        name=recording.name,
        duration=round(recording.duration_s, 3),
        bytes=recording.bytes,
        sha256=recording.sha256,
        indexed_at=recording.indexed_at,
        external_id=recording.external_id,
        metadata=recording.metadata,
    )
