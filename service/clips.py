"""Clips of a query: a stretch of a file with the sound around it, read within limits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from model import audio
from model.audio import SAMPLE_RATE, Samples
from model.encoder import FRAME_SAMPLES
from service.errors import BadStretch, QueryTooLong

CONTEXT_FRAMES = 50  # 2 s: kept on each side of a stretch, so that it is heard as in its recording


@dataclass(frozen=True, eq=False)
class Clip:
    """Float32 at 16 kHz: the stretch that is asked about, and what lies `before` (whole frames) and `after` it.

    `start_s` is where the stretch begins in the file, `duration_s` the length of the whole file.
    """

    before: Samples
    samples: Samples
    after: Samples
    start_s: float
    duration_s: float


def read_clip(source: audio.Source, max_s: float, start_s: float | None = None, end_s: float | None = None) -> Clip:
    """The stretch from `start_s` to `end_s` of an audio file (all of it by default), at most `max_s` long.

    Decodes no further than it must and holds no more than the stretch and its context. Raises AudioError, QueryTooLong,
    BadStretch.
    """
    if start_s is not None and end_s is not None and end_s <= start_s:
        raise BadStretch(f"the stretch ends at {end_s:g} s, before it begins at {start_s:g} s", "end")
    first = int((start_s or 0.0) * SAMPLE_RATE) // FRAME_SAMPLES * FRAME_SAMPLES
    last = None if end_s is None else int(end_s * SAMPLE_RATE)
    context = CONTEXT_FRAMES * FRAME_SAMPLES
    low = max(0, first - context)
    most = first + int(max_s * SAMPLE_RATE)
    if last is not None and last > most:
        raise QueryTooLong(f"{(last - first) / SAMPLE_RATE:.0f} s of query, where {max_s:g} s are allowed", "end")
    high = (most + 1 if last is None else last) + context
    kept: list[Samples] = []
    total, ended = 0, True
    for chunk in audio.read_chunks(source):
        if total + len(chunk) > low:  # an empty slice would keep all of its chunk in memory
            kept.append(chunk[max(0, low - total) : max(0, high - total)])
        total += len(chunk)
        if total >= high:
            ended = False
            break
    held = np.concatenate(kept) if kept else np.zeros(0, np.float32)
    if last is None and total > most:
        raise QueryTooLong(f"the clip is longer than the {max_s:g} s that are allowed", "file")
    stop = min(total, total if last is None else last)
    if first >= stop:
        raise BadStretch(
            f"the stretch begins at {start_s or 0.0:g} s, in a clip of {total / SAMPLE_RATE:.2f} s", "start"
        )
    claimed_s = None if ended else audio.duration_s(source)
    return Clip(
        before=held[: first - low],
        samples=held[first - low : stop - low],
        after=held[stop - low : stop - low + context],
        start_s=first / SAMPLE_RATE,
        duration_s=max(total / SAMPLE_RATE, claimed_s or 0.0),
    )
