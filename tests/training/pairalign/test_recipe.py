"""From a folder of sound to a tokenizer that keeps the contract, and on again from what is there."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from model import contract
from model.pairalign.graph import build
from model.pairalign.part import read_part
from model.tokenizer import Tokenizer
from model.training.pairalign import hearings, recipe
from model.training.pairalign.batches import Examples
from model.training.pairalign.stages import LOG_FILE
from model.training.recipe import Corpus
from service.cli import app
from tests.training.corpus import write_corpus
from tests.training.pairalign.world import FRAMES, world

pytestmark = pytest.mark.training


@pytest.fixture(autouse=True)
def few_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve stretches that are heard alone, not six thousand."""
    monkeypatch.setattr(hearings, "CUTS", 12)


def test_a_corpus_becomes_a_tokenizer(tmp_path: Path) -> None:
    folder, work = write_corpus(tmp_path / "corpus", recordings=4, seconds=4.0), tmp_path / "work"
    told = ["train-pairalign", str(folder), "--work", str(work), "--workers", "1", "--tokens", "64"]
    told += ["--minutes", "0.02", "0.02", "0.02"]
    done = CliRunner().invoke(app, told)
    assert done.exit_code == 0, done.output
    part = read_part(work / recipe.PART_FILE)
    build(part, tmp_path / "p.onnx")
    assert contract.check(tmp_path / "p.onnx").passed
    made = Tokenizer(tmp_path / "p.onnx", threads=1).codebook
    assert (made.size, made.parts) == (64, 8)
    stages = [line.split('"')[3] for line in (work / LOG_FILE).read_text().splitlines()]
    assert stages == ["pairalign-1", "pairalign-2", "pairalign-3"]

    # Again: nothing is heard or learned twice, and what comes out is the same.
    before = {path.name: path.stat().st_mtime_ns for path in work.glob("*.f16")}
    assert CliRunner().invoke(app, told).exit_code == 0
    assert {path.name: path.stat().st_mtime_ns for path in work.glob("*.f16")} == before
    again = read_part(work / recipe.PART_FILE)
    assert all(np.array_equal(again.weights[name], value) for name, value in part.weights.items())
    assert len((work / LOG_FILE).read_text().splitlines()) == 3


def test_a_run_goes_on_from_an_earlier_part(tmp_path: Path) -> None:
    folder, first, second = write_corpus(tmp_path / "corpus", 4, 4.0), tmp_path / "first", tmp_path / "second"
    told = ["train-pairalign", str(folder), "--workers", "1", "--tokens", "64", "--minutes"]
    assert CliRunner().invoke(app, [*told, "0.02", "0", "0", "--work", str(first)]).exit_code == 0
    again = [*told, "0", "0", "0", "--work", str(second), "--start", str(first / recipe.PART_FILE)]
    done = CliRunner().invoke(app, again)
    assert done.exit_code == 0, done.output
    before, after = read_part(first / recipe.PART_FILE), read_part(second / recipe.PART_FILE)
    assert all(np.array_equal(after.weights[name], value) for name, value in before.weights.items())
    alike = after.codebook.centroids @ before.codebook.centroids.T
    assert (alike.argmax(1) == np.arange(64)).mean() > 0.9  # tokens keep their numbers

    told[told.index("64")] = "32"
    done = CliRunner().invoke(app, [*told, "0", "0", "0", "--work", str(tmp_path / "x"), "--start", str(again[-1])])
    assert done.exit_code == 1
    assert "writes 64 tokens" in done.output


def test_words_are_found_by_what_transcripts_share(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus", recordings=3, seconds=4.0)
    shutil.copyfile(folder / "0.wav", folder / "again.wav")
    lines = ["path\tcorpus\tlanguage\tspeaker\tsplit\ttext\tseconds"]
    for name, text in (("0", "it wetterstrjitte is"), ("again", "it wetterstrjitte is"), ("1", "neat"), ("2", "")):
        lines.append(f"{name}.wav\tc\tfy\t{name}\ttrain\t{text}\t4.0")
    manifest = tmp_path / "manifest.tsv"
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def prepared(excluded: frozenset[str], work: Path) -> Examples:
        corpus = Corpus(folder, manifest, excluded=excluded)
        return recipe.prepare(corpus, Tokenizer(threads=1), work, 1.0, 1, size=32)[0]

    examples = prepared(frozenset(), tmp_path / "work")
    assert examples.labels == ["fy/wetterstrjitte"]
    names = [examples.hearings.pack.entries[cut.recording].path for cut in examples.hearings.cuts[:2]]
    assert sorted(names) == ["0.wav", "again.wav"]
    assert len({cut.first for cut in examples.hearings.cuts[:2]}) == 1
    assert prepared(frozenset({"wetterstrjitte"}), tmp_path / "other").labels == []


def test_too_little_sound_for_a_codebook_is_named(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus", recordings=4, seconds=1.0)
    done = CliRunner().invoke(app, ["train-pairalign", str(folder), "--work", str(tmp_path / "work"), "--workers", "1"])
    assert done.exit_code == 1
    assert "cannot carry 4096 centroids" in done.output
    assert not list((tmp_path / "work").glob("codebook*"))


def test_no_language_outweighs_the_others_in_the_codebook() -> None:
    examples = world()
    pack = examples.hearings.pack
    languages = ["aa"] * 9 + ["bb", "cc", "cc"]
    pack.entries[:] = [
        replace(entry, language=language) for entry, language in zip(pack.entries, languages, strict=True)
    ]
    frames = recipe.sample(examples.hearings, 10_000)
    found = [languages[frame // FRAMES] for frame in frames]
    assert {name: found.count(name) for name in ("aa", "bb", "cc")} == {"aa": 360, "bb": 120, "cc": 240}
    assert len(np.unique(frames)) == len(frames)
    few = recipe.sample(examples.hearings, 100)
    assert len(few) == 100
    assert (few < 9 * FRAMES).sum() == 50
    pack.entries[:] = [replace(entry, language="aa") for entry in pack.entries]
    assert len(recipe.sample(examples.hearings, 100)) == 100


def test_views_of_a_recording_are_near_it(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus", recordings=4, seconds=4.0)
    examples, book = recipe.prepare(Corpus(folder, None), Tokenizer(threads=1), tmp_path / "work", 1.0, 1, size=32)
    assert book.size == examples.shape.size == 32
    assert examples.ids.max() == 31
    clean, changed = (np.asarray(view, np.float32) for view in examples.hearings.views)
    near, far = (clean * changed).sum(1).mean(), (clean * np.roll(changed, 150, 0)).sum(1).mean()
    assert 0.99 > near > far + 0.1
    torch.testing.assert_close(
        torch.from_numpy(np.linalg.norm(clean, axis=1)), torch.ones(len(clean)), atol=2e-3, rtol=0
    )
    for number, cut in enumerate(examples.hearings.cuts):
        assert len(examples.hearings.cut(number)) == cut.frames
