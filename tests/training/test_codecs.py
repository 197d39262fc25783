"""Codecs: what comes out is the same speech at the same place, and not the same samples."""

import shutil
from pathlib import Path

import numpy as np
import pytest

import service
from model import audio
from model.encoder import FRAME_SAMPLES
from model.training import codecs, data
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


def test_copies_lie_behind_all_recordings_and_are_made_once(work: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(work, run)
    before = data.read_pack(run)
    with (run / data.SAMPLES_FILE).open("ab") as file:  # as a run leaves it that was stopped while it coded
        file.write(b"\x01\x00" * 1_000)
    part = data.Pack(before.samples, before.start[:6], before.frames[:6], before.entries[:6])
    learned = codecs.add_copies(part, run, workers=1, share=0.4)
    assert 1 <= len(learned.copies) <= 3
    assert set(learned.copies) <= set(range(6))
    assert (learned.samples[: len(before.samples)] == before.samples).all()
    assert min(learned.copies.values()) == int(before.frames.sum())
    assert len(learned.samples) == (before.frames.sum() + before.frames[list(learned.copies)].sum()) * FRAME_SAMPLES
    for recording, first in learned.copies.items():
        original = before.waveform(recording).astype(np.float64)
        copy = learned.samples[first * FRAME_SAMPLES :][: len(original)].astype(np.float64)
        assert not np.array_equal(copy, original)
        assert np.corrcoef(copy, original)[0, 1] > 0.5
    changed = (run / data.SAMPLES_FILE).stat().st_mtime_ns
    again = codecs.add_copies(part, run, workers=1, share=0.4)
    assert again.copies == learned.copies == data.read_pack(run).copies
    assert (run / data.SAMPLES_FILE).stat().st_mtime_ns == changed
