"""The pairalign tokenizer from the command line: built, indexed with, searched with, and what it does not allow."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from rapidfuzz.distance import Levenshtein

from model import audio
from model.pairalign.part import read_part
from model.tokenizer import Tokenizer
from tests.service.conftest import DEMO, Run, run_cli
from tests.service.sounds import write
from tests.service.test_bring_your_own import RECORDINGS, spoken


@pytest.fixture(scope="module")
def indexed(tokenizer_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """`sayagain` with a home that has an archive of that tokenizer, which was put together for it."""
    home = tmp_path_factory.mktemp("home")

    def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
        return run_cli(home, tokenizer_path, *words)

    done = run("index", *RECORDINGS, "--archive", "compact", "--tokenizer", "pairalign", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["indexed"] == len(RECORDINGS)
    assert (home / "tokenizers" / "pairalign.onnx").exists()
    return run


def test_stretches_of_recordings_are_found_at_their_places(indexed: Run, tmp_path: Path) -> None:
    stretches = [spoken(recording) for recording in RECORDINGS]
    clips = [
        write(tmp_path / f"{recording.stem}.wav", audio.read(recording)[int(start * 16_000) : int(end * 16_000)])
        for recording, (start, end) in zip(RECORDINGS, stretches, strict=True)
    ]
    done = indexed("search", *clips, "--archive", "compact", "--json")
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(RECORDINGS)
    ranks = []
    for recording, (start, end), answer in zip(RECORDINGS, stretches, answers, strict=True):
        assert answer["query"]["tokenizer"] == "pairalign"
        ranks += [
            hit["rank"]
            for hit in answer["hits"]
            if hit["recording"]["name"] == recording.name and hit["start"] < end and hit["end"] > start
        ][:1]
    # Cut out, a word is written otherwise than in its sentence: it is found, and as a rule among the first.
    assert len(ranks) == len(RECORDINGS)
    assert sorted(ranks)[2] <= 2


def test_it_writes_fewer_tokens_than_the_default(tokenizer_path: Path, tmp_path: Path) -> None:
    from model.pairalign.graph import build

    build(read_part(), tmp_path / "p.onnx")
    compact, default = Tokenizer(tmp_path / "p.onnx"), Tokenizer(tokenizer_path)
    counts, seconds = [0, 0], 0.0
    for recording in RECORDINGS:
        samples = audio.read(recording)
        seconds += len(samples) / 16_000
        counts = [n + len(t.tokenize(samples)) for n, t in zip(counts, (compact, default), strict=True)]
    assert 0.0 < counts[0] / seconds <= 12.0
    assert counts[0] < counts[1]


def test_its_codebook_is_fixed(indexed: Run) -> None:
    (archive,) = json.loads(indexed("archives", "--json").stdout)["archives"]
    assert archive["codebook"] == "tokenizer"
    for words in (
        ("refit", "compact"),
        ("index", DEMO / "archive" / "field-notes", "--archive", "other", "--tokenizer", "pairalign", "--codebook",
         "archive"),
    ):  # fmt: skip
        done = indexed(*words)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith("sayagain: codebook_fixed: ")


def test_it_can_be_built_at_another_rate(indexed: Run, tmp_path: Path) -> None:
    most, least = tmp_path / "most.onnx", tmp_path / "least.onnx"
    for out, rate in ((most, 0), (least, read_part().shape.rates - 1)):
        done = indexed("tokenizer", "build", "pairalign", "--rate", str(rate), "--out", out)
        assert done.returncode == 0, done.stderr
    samples = audio.read(RECORDINGS[0])
    assert len(Tokenizer(least).tokenize(samples)) < len(Tokenizer(most).tokenize(samples))
    done = indexed("tokenizer", "build", "pairalign", "--rate", "9", "--out", tmp_path / "none.onnx")
    assert done.returncode == 1
    assert done.stderr.startswith("sayagain: pairalign_part_invalid: there is no rate 9")


def test_it_can_be_built_with_a_beam(indexed: Run, tmp_path: Path) -> None:
    greedy, wide = tmp_path / "greedy.onnx", tmp_path / "wide.onnx"
    for out, beam in ((greedy, 1), (wide, 3)):
        done = indexed("tokenizer", "build", "pairalign", "--beam", str(beam), "--out", out)
        assert done.returncode == 0, done.stderr
    strings = [[Tokenizer(out).tokenize(audio.read(r)).ids.tolist() for r in RECORDINGS] for out in (greedy, wide)]
    assert strings[0] != strings[1]
    alike = [Levenshtein.normalized_similarity(a, b) for a, b in zip(*strings, strict=True)]
    assert min(alike) > 0.5  # another way to the same sound, not another sound
    done = indexed("tokenizer", "build", "pairalign", "--beam", "99", "--out", tmp_path / "none.onnx")
    assert done.returncode == 1
    assert done.stderr.startswith("sayagain: pairalign_part_invalid: there is no beam of 99")
