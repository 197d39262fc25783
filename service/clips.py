"""Clips of a query, read within the limits."""

from __future__ import annotations

from model import audio
from model.audio import Samples
from service.errors import QueryTooLong
from service.settings import Settings


def read_clip(source: audio.Source, settings: Settings) -> Samples:
    """Samples of a clip, read no further than a clip may be long, so that a long one costs no memory.

    Raises AudioError, QueryTooLong.
    """
    samples = audio.read(source, settings.max_query_s + 1.0)
    if len(samples) > settings.max_query_s * audio.SAMPLE_RATE:
        raise QueryTooLong(f"the clip is longer than the {settings.max_query_s:g} s that are allowed", "file")
    return samples
