"""The bundled demo: its files, its truth, and that it can be made again."""

from __future__ import annotations

import ctypes.util
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from model.audio import SAMPLE_RATE, read
from service.demo import make

DEMO = Path(make.__file__).parent
SCRIPT = make.rows(DEMO / "script.tsv")
TERMS = make.rows(DEMO / "terms.tsv")
TRUTH = make.rows(DEMO / "truth.tsv")


def test_every_recording_of_the_script_is_there_and_no_other() -> None:
    there = {path.relative_to(DEMO / "archive").as_posix() for path in (DEMO / "archive").rglob("*") if path.is_file()}
    assert there == {row["recording"] for row in SCRIPT}


def test_the_archive_is_long_enough_for_a_codebook_of_its_own_and_small() -> None:
    lengths_s = [len(read(DEMO / "archive" / row["recording"])) / SAMPLE_RATE for row in SCRIPT]
    assert min(lengths_s) >= 3
    assert max(lengths_s) <= 25
    assert 11 * 60 < sum(lengths_s) < 15 * 60
    assert sum(path.stat().st_size for path in DEMO.rglob("*.opus")) < 2_000_000
    assert len({row["language"] for row in SCRIPT}) >= 4


def test_truth_has_every_place_where_a_term_stands_in_the_text() -> None:
    expected = Counter(
        (row["recording"], term["term"])
        for row in SCRIPT
        for term in TERMS
        if term["language"] == row["language"]
        for _ in range(row["text"].lower().count(term["term"].lower()))
    )
    assert Counter((row["recording"], row["term"]) for row in TRUTH) == expected
    assert min(Counter(row["term"] for row in TRUTH).values()) >= 3


def test_truth_lies_within_the_recordings_and_over_sound() -> None:
    for row in TRUTH:
        start_s, end_s = float(row["start"]), float(row["end"])
        samples = read(DEMO / "archive" / row["recording"])
        assert 0.3 < end_s - start_s < 1.4, row
        assert end_s * SAMPLE_RATE < len(samples), row
        said = samples[round(start_s * SAMPLE_RATE) : round(end_s * SAMPLE_RATE)]
        assert np.sqrt((said**2).mean()) > 0.5 * np.sqrt((samples**2).mean()), row


def test_no_recording_has_the_voice_of_a_query() -> None:
    recorded = {row["voice"].split("+")[1] for row in SCRIPT}
    assert not recorded & {row["voice"].split("+")[1] for row in TERMS}
    for row in TERMS:
        assert 0.5 < len(read(DEMO / row["clip"])) / SAMPLE_RATE < 2.0, row


@pytest.mark.skipif(ctypes.util.find_library("espeak-ng") is None, reason="espeak-ng is needed to remake the demo")
def test_the_demo_can_be_made_again(tmp_path: Path) -> None:
    make.make(tmp_path)
    again = make.rows(tmp_path / "truth.tsv")
    assert [(row["recording"], row["term"]) for row in again] == [(row["recording"], row["term"]) for row in TRUTH]
    for new, old in zip(again, TRUTH, strict=True):
        # Another release of espeak-ng speaks a little differently, and every time moves with it.
        assert float(new["start"]) == pytest.approx(float(old["start"]), abs=0.5), new
    for row in TERMS:
        made, kept = read(tmp_path / row["clip"]), read(DEMO / row["clip"])
        assert abs(len(made) - len(kept)) < 0.2 * SAMPLE_RATE, row
