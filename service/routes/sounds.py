"""The sound of a recording: the file itself, a stretch of it, and pictures of a stretch."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import FileResponse

from indexer.recordings import RecordingInfo
from model.audio import SAMPLE_RATE, Samples
from service import sound
from service.deps import Backend, BackendDep, RecordingDep
from service.routes.responses import errors
from service.schemas import PeaksOut

router = APIRouter(prefix="/v1/recordings/{recording}", tags=["sounds"])

ERRORS = errors(400, 404, 410, 422, 503)
CACHED = {"Cache-Control": "private, max-age=60"}

_WAV: dict[int | str, dict[str, Any]] = {200: {"content": {"audio/wav": {}}}}
_PNG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {}}}}

StartQuery = Annotated[float, Query(ge=0.0, allow_inf_nan=False, description="seconds; the stretch begins here")]
EndQuery = Annotated[
    float | None,
    Query(gt=0.0, allow_inf_nan=False, description="seconds; it ends here, or with the recording"),
]


@router.get("/audio", operation_id="recording_audio", response_class=FileResponse, responses=ERRORS)
def whole(recording: RecordingDep) -> FileResponse:
    """The file as it was indexed; ranges of bytes may be asked for."""
    path = sound.path_of(recording)
    return FileResponse(path, media_type=sound.media_type(path), filename=path.name, content_disposition_type="inline")


@router.get("/clip", operation_id="recording_clip", response_class=Response, responses=ERRORS | _WAV)
def clip(backend: BackendDep, recording: RecordingDep, start: StartQuery = 0.0, end: EndQuery = None) -> Response:
    """A stretch as a WAV file, mono at 16 kHz."""
    samples = _stretch(backend, recording, start, end)
    return Response(sound.wav(samples), media_type="audio/wav", headers=CACHED)


@router.get("/peaks", operation_id="recording_peaks", responses=ERRORS)
def peaks(
    backend: BackendDep,
    recording: RecordingDep,
    start: StartQuery = 0.0,
    end: EndQuery = None,
    points: Annotated[int, Query(ge=1, le=4_000)] = 400,
) -> PeaksOut:
    """The lowest and highest sample of each of `points` equal parts of a stretch, to draw its waveform."""
    samples = _stretch(backend, recording, start, end)
    stop = start + len(samples) / SAMPLE_RATE
    return PeaksOut(start=start, end=round(stop, 3), peaks=sound.peaks(samples, points))


@router.get("/spectrogram", operation_id="recording_spectrogram", response_class=Response, responses=ERRORS | _PNG)
def spectrogram(
    backend: BackendDep,
    recording: RecordingDep,
    start: StartQuery = 0.0,
    end: EndQuery = None,
    width: Annotated[int, Query(ge=16, le=4_000, description="pixels")] = 800,
    height: Annotated[int, Query(ge=16, le=1_000, description="pixels")] = 160,
) -> Response:
    """The log-mel spectrogram of a stretch as PNG, dark where it is loud."""
    samples = _stretch(backend, recording, start, end)
    return Response(sound.spectrogram(samples, width, height), media_type="image/png", headers=CACHED)


def _stretch(backend: Backend, recording: RecordingInfo, start: float, end: float | None) -> Samples:
    """Raises BadStretch, AudioGone, DecoderFailed, TooBusy."""
    return sound.stretch_of(recording, start, end, backend.settings.max_clip_s, backend.decoders.read_between)
