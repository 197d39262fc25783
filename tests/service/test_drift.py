"""An archive is told when what comes later sounds unlike what its codebook was fitted to."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from sqlalchemy import Engine

from indexer import fitting, pipeline, store
from indexer.report import IndexReport
from service import output
from tests.conftest import ToneFile
from tests.service.conftest import DEMO

DRIFTED = "fits the archive's codebook less well"


@pytest.mark.parametrize(
    ("kind", "parameters", "speech_s", "cosine", "expected"),
    [
        ("archive", {"cosine": 0.75}, 600.0, 0.5, True),
        ("archive", {"cosine": 0.75}, 120.0, 0.5, True),
        ("archive", {"cosine": 0.75}, 119.0, 0.5, False),  # too little to tell
        ("archive", {"cosine": 0.75}, 600.0, 0.52, False),
        ("archive", {"cosine": None}, 600.0, 0.1, False),  # fitted to no speech
        ("archive", {}, 600.0, 0.1, False),  # fitted before it was noted
        ("tokenizer", {"cosine": 0.75}, 600.0, 0.1, False),
        (None, {}, 0.0, 0.0, False),
    ],
)
def test_when_an_archive_has_drifted_from_its_codebook(
    kind: fitting.Kind | None, parameters: dict[str, Any], speech_s: float, cosine: float, expected: bool
) -> None:
    assert fitting.drifted(kind, parameters, speech_s, cosine) is expected


def told(report: IndexReport) -> str:
    console = Console(file=io.StringIO(), width=400)
    output.print_index_report(report, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_other_sound_than_the_codebook_was_fitted_to_is_told_and_more_of_the_same_is_not(
    engine: Engine, tone_file: ToneFile, tokenizer_path: Path
) -> None:
    def index(*paths: Path) -> IndexReport:
        return pipeline.index_archive(engine, paths, "air", tokenizer_path, workers=1, codes=False)

    station = sorted((DEMO / "archive" / "skerry-radio").iterdir())
    first = index(*station[:9])
    with engine.connect() as connection:
        archive = store.get_archive(connection, "air")
        assert archive.codebook_id is not None
        noted = store.codebook_parameters(connection, archive.codebook_id)["cosine"]
    assert (first.codebook_kind, first.cosine) == ("archive", pytest.approx(noted, abs=0.01))
    assert not first.drifted

    same = index(*station[9:], DEMO / "archive" / "field-notes")  # English too
    assert same.speech_s > fitting.JUDGED_S
    assert same.cosine < first.cosine
    assert not same.drifted
    assert DRIFTED not in told(same)

    other = index(tone_file("tones.wav", seconds=160, seed=1))
    assert other.speech_s > fitting.JUDGED_S
    assert not other.outgrown
    assert other.as_json()["codebook"]["drifted"]
    assert other.cosine < noted - fitting.DRIFTED
    assert DRIFTED in told(other)
    assert "(sayagain refit air)" in told(other)

    assert not index(tone_file("tones.wav", seconds=160, seed=1)).drifted  # nothing came
