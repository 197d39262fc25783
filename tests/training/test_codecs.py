"""Codecs: what comes out is the same speech at the same place, and not the same samples."""

from pathlib import Path

import numpy as np
import pytest

import service
from model import audio
from model.training.codecs import CODINGS, Coding, available, coded

pytestmark = pytest.mark.training


def test_this_build_has_them_all() -> None:
    assert available() == list(CODINGS)


@pytest.mark.parametrize("coding", CODINGS, ids=lambda c: c.encoder)
def test_speech_comes_back_in_its_place_and_changed(coding: Coding) -> None:
    samples = audio.read(Path(service.__file__).parent / "demo" / "archive" / "skerry-radio" / "01-monday.opus")[
        16_000:80_000
    ]
    for bit_rate in coding.bit_rates:
        heard = coded(samples, coding, bit_rate)
        assert heard.shape == samples.shape
        assert heard.dtype == np.float32
        likeness = np.fft.irfft(np.fft.rfft(heard, 1 << 18) * np.conj(np.fft.rfft(samples, 1 << 18)))
        shift = (int(np.argmax(likeness)) + (1 << 17)) % (1 << 18) - (1 << 17)
        assert abs(shift) <= 8  # half a millisecond
        assert 0.6 < np.corrcoef(heard, samples)[0, 1] < 0.99999


def test_silence_stays_silence() -> None:
    for coding in CODINGS:
        assert np.abs(coded(np.zeros(32_000, np.float32), coding, coding.bit_rates[0])).max() < 1e-3
