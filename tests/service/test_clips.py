"""Clips: what is read of a file, and how much of it is held."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from model import audio
from service.clips import read_clip
from service.errors import BadStretch, QueryTooLong
from tests.service import hostile
from tests.service.sounds import encode


@pytest.fixture(scope="module")
def long() -> bytes:
    """Ten minutes."""
    return encode(0.1 * np.sin(np.arange(600 * 1_000) / 7), 1_000)


def test_a_stretch_late_in_a_file_takes_no_more_memory_than_an_early_one(long: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(long)
    readings = [
        lambda: read_clip(long, 60.0, 590.0, 592.0),
        lambda: audio.read_between(tmp_path / "a.wav", 590.0, 592.0),
    ]
    for read in readings:
        tracemalloc.start()
        read()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < 8e6  # all of it would be 38 MB


def test_a_stretch_after_the_end_is_refused_by_name(long: bytes) -> None:
    with pytest.raises(BadStretch) as refused:
        read_clip(long, 60.0, 601.0)
    assert refused.value.field == "start"


def test_a_block_of_many_hours_is_not_resampled_at_once() -> None:
    tracemalloc.start()
    with pytest.raises(QueryTooLong):
        read_clip(hostile.swelling_flac(), 60.0)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 20e6  # 55 bytes, which would be 4 GB
