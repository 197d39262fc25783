"""A stage of training: it learns, it is killed, it goes on, and it leaves all that export needs."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model.export import Description
from model.tokenizer import Tokenizer
from model.training import recipe
from model.training.stages import (
    CHECKPOINT_FILE,
    LOG_FILE,
    WEIGHTS_FILE,
    Stage,
    held_out_cosine,
    learning_rate,
    load_student,
    run,
)
from tests.training.corpus import DISTIL, SMALL, sampler_of

pytestmark = pytest.mark.training

CPU = torch.device("cpu")
QUICK = Stage(
    minutes=0.06, warmup_steps=10, rows=4, evaluate_steps=5, checkpoint_s=0.3, shape=SMALL, distillation=DISTIL
)


def test_learning_rate_warms_up_and_follows_the_budget() -> None:
    at = ((0, 0.0), (5, 0.0), (300, 0.0), (300, 0.5), (300, 1.0))
    rates = [learning_rate(QUICK, step, share) for step, share in at]
    assert rates[0] < rates[1] < rates[2] == pytest.approx(QUICK.learning_rate)
    assert rates[4] == pytest.approx(QUICK.final_rate)
    assert rates[3] == pytest.approx((QUICK.learning_rate + QUICK.final_rate) / 2)


def log_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / LOG_FILE).read_text().splitlines()]


def test_training_learns_and_leaves_all_that_export_needs(work: Path, tmp_path: Path) -> None:
    sampler = sampler_of(work)
    stage = QUICK
    while (scores := run(stage, sampler, None, tmp_path, CPU))["steps"] < 4 * QUICK.evaluate_steps:
        stage = replace(stage, minutes=2 * stage.minutes)  # a busy machine: more time for the same steps
    lines = log_of(tmp_path)
    assert lines[-1]["distil"] < lines[0]["distil"]
    assert scores["held_out_cosine"] > lines[0]["held_out_cosine"]
    assert lines[-1]["step"] <= scores["steps"] < lines[-1]["step"] + QUICK.evaluate_steps
    codebook = recipe.fit_own_codebook(load_student(tmp_path / WEIGHTS_FILE), sampler.pack, CPU)
    recipe.save_codebook(codebook, tmp_path / recipe.CODEBOOK_FILE)
    recipe.export_work(tmp_path, Description("tiny", "1", "Apache-2.0", "nothing"), tmp_path / "tiny.onnx")
    tokenizer = Tokenizer(tmp_path / "tiny.onnx")
    assert tokenizer.codebook.dim == SMALL.dim
    assert tokenizer.codebook.sha256 == codebook.sha256
    # The next stage begins where this one ended: with no time left of its own it changes nothing.
    after = tmp_path / "after"
    again = run(replace(QUICK, minutes=0.0), sampler, None, after, CPU, tmp_path / WEIGHTS_FILE)
    assert again["held_out_cosine"] == pytest.approx(scores["held_out_cosine"], abs=1e-6)
    with pytest.raises(recipe.TrainingError, match=f"{after} has no {recipe.CODEBOOK_FILE}: train first"):
        recipe.export_work(after, Description("tiny", "1", "Apache-2.0", "nothing"), tmp_path / "tiny.onnx")


def test_a_stage_may_leave_weights_between_its_own_and_those_at_the_start(work: Path, tmp_path: Path) -> None:
    sampler = sampler_of(work)
    first = tmp_path / "first"
    run(QUICK, sampler, None, first, CPU)
    second = tmp_path / "second"
    scores = run(replace(QUICK, seed=1, blend=0.25), sampler, None, second, CPU, first / WEIGHTS_FILE)
    before, after = load_file(first / WEIGHTS_FILE), load_file(second / WEIGHTS_FILE)
    learned = torch.load(second / CHECKPOINT_FILE, weights_only=True)["average"]
    assert not same(before, learned)
    for name, tensor in after.items():
        assert torch.allclose(tensor, 0.75 * before[name] + 0.25 * learned[name], atol=1e-6), name
    left = load_student(second / WEIGHTS_FILE)
    assert scores["held_out_cosine"] == pytest.approx(held_out_cosine(left, sampler, CPU), abs=1e-6)


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return set(one) == set(two) and all(torch.equal(one[name], two[name]) for name in one)


def test_a_killed_run_goes_on_where_it_was(work: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD.format(work=str(work), run=str(folder))],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 300
    written = (folder / CHECKPOINT_FILE, folder / LOG_FILE)
    while not all(path.exists() for path in written) and time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.05)
    time.sleep(0.7)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    at_kill = torch.load(folder / CHECKPOINT_FILE, weights_only=True)
    assert at_kill["step"] > 0
    sampler = sampler_of(work)

    # With all of its budget spent it takes no step, and what it leaves is what the checkpoint had.
    spent = tmp_path / "spent"
    shutil.copytree(folder, spent)
    scores = run(replace(QUICK, minutes=(at_kill["spent_s"] - 1e-6) / 60), sampler, None, spent, CPU)
    assert scores["steps"] == at_kill["step"]
    assert same(load_file(spent / WEIGHTS_FILE), at_kill["average"])
    untouched = torch.load(spent / CHECKPOINT_FILE, weights_only=True)
    assert same(untouched["trained"], at_kill["trained"])
    assert untouched["step"] == at_kill["step"]
    moments = [untouched["optimizer"]["state"], at_kill["optimizer"]["state"]]
    assert all(same(moments[0][i], moments[1][i]) for i in moments[1])

    seen = len(log_of(folder))
    run(replace(QUICK, minutes=at_kill["spent_s"] / 60 + 0.02), sampler, None, folder, CPU)
    after = torch.load(folder / CHECKPOINT_FILE, weights_only=True)
    assert after["step"] > at_kill["step"]
    # The budget counts what was spent before the kill: this run had little more than a second left.
    assert after["spent_s"] < at_kill["spent_s"] + 10
    new = [line["step"] for line in log_of(folder)[seen:]]
    assert new == sorted(new)
    assert all(at_kill["step"] < step <= after["step"] and step % QUICK.evaluate_steps == 0 for step in new)


_CHILD = """
import torch
from dataclasses import replace
from pathlib import Path
from model.training.stages import run
from tests.training.corpus import sampler_of
from tests.training.test_stages import QUICK
torch.set_num_threads(1)
run(replace(QUICK, minutes=5.0), sampler_of(Path({work!r})), None, Path({run!r}), torch.device("cpu"))
"""
