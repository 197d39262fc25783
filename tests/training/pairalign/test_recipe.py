"""From a folder of sound to a tokenizer that keeps the contract, and on again from what is there."""

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from model import contract
from model.pairalign.graph import build
from model.pairalign.part import read_part
from model.training.pairalign import hearings, recipe
from model.training.pairalign.stages import LOG_FILE
from model.training.recipe import Corpus
from service.cli import app
from tests.training.corpus import write_corpus

pytestmark = pytest.mark.training


@pytest.fixture(autouse=True)
def few_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve stretches that are heard alone, not six thousand."""
    monkeypatch.setattr(hearings, "CUTS", 12)


def test_a_corpus_becomes_a_tokenizer(tmp_path: Path) -> None:
    folder, work = write_corpus(tmp_path / "corpus", recordings=4, seconds=4.0), tmp_path / "work"
    told = ["train-pairalign", str(folder), "--work", str(work), "--workers", "1", "--minutes", "0.02", "0.02", "0.02"]
    done = CliRunner().invoke(app, told)
    assert done.exit_code == 0, done.output
    part = read_part(work / recipe.PART_FILE)
    build(part, tmp_path / "p.onnx")
    assert contract.check(tmp_path / "p.onnx").passed
    stages = [line.split('"')[3] for line in (work / LOG_FILE).read_text().splitlines()]
    assert stages == ["pairalign-1", "pairalign-2", "pairalign-3"]

    # Again: nothing is heard or learned twice, and what comes out is the same.
    before = {path.name: path.stat().st_mtime_ns for path in work.glob("*.f16")}
    assert CliRunner().invoke(app, told).exit_code == 0
    assert {path.name: path.stat().st_mtime_ns for path in work.glob("*.f16")} == before
    again = read_part(work / recipe.PART_FILE)
    assert all(np.array_equal(again.weights[name], value) for name, value in part.weights.items())
    assert len((work / LOG_FILE).read_text().splitlines()) == 3


def test_views_of_a_recording_are_near_it(tmp_path: Path) -> None:
    from model.tokenizer import Tokenizer

    folder = write_corpus(tmp_path / "corpus", recordings=4, seconds=4.0)
    examples = recipe.prepare(Corpus(folder, None), Tokenizer(threads=1), tmp_path / "work", 1.0, 1)
    clean, changed = (np.asarray(view, np.float32) for view in examples.hearings.views)
    near, far = (clean * changed).sum(1).mean(), (clean * np.roll(changed, 150, 0)).sum(1).mean()
    assert 0.99 > near > far + 0.1
    torch.testing.assert_close(
        torch.from_numpy(np.linalg.norm(clean, axis=1)), torch.ones(len(clean)), atol=2e-3, rtol=0
    )
    for number, cut in enumerate(examples.hearings.cuts):
        assert len(examples.hearings.cut(number)) == cut.frames
