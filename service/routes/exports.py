"""Hits of an answer in the formats of other programs."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from indexer import store
from indexer.recordings import recordings_by_id
from service.deps import BackendDep
from service.exports.formats import MEDIA_TYPES, ZIP, Format, download
from service.exports.marks import Mark
from service.routes.responses import errors
from service.schemas import ExportIn

router = APIRouter(prefix="/v1/exports", tags=["exports"])

_FILE: dict[int | str, dict[str, Any]] = {200: {"content": {kind: {} for kind in (*MEDIA_TYPES.values(), ZIP)}}}


@router.post("/{kind}", operation_id="export_hits", response_class=Response, responses=_FILE | errors(404, 422, 503))
def export(backend: BackendDep, kind: Format, wanted: ExportIn) -> Response:
    """A table of the hits, or a zip of label files, one for each recording; `hits` may be those of any answer."""
    with backend.reading() as connection:
        recordings = recordings_by_id(connection, {hit.recording.id for hit in wanted.hits})
    marks = []
    for rank, hit in enumerate(wanted.hits, 1):
        recording = recordings.get(hit.recording.id)
        if recording is None:
            raise store.RecordingNotFound(f"there is no recording {hit.recording.id}")
        marks.append(Mark(recording.name, recording.duration_s, hit.start, hit.end, hit.score, wanted.label, rank))
    content, media_type, suffix = download(kind, marks)
    headers = {"Content-Disposition": f'attachment; filename="hits{suffix}"'}
    return Response(content, media_type=media_type, headers=headers)
