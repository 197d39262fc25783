"""The stages: they teach, they hold a length, they are killed and go on."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.training.pairalign.batches import Mixture, fair
from model.training.pairalign.corruption import Corruption
from model.training.pairalign.decoder import Decoder
from model.training.pairalign.stages import (
    LOG_FILE,
    STATE_FILE,
    held_out_sets,
    judge,
    losses,
    pieces,
    run,
    stage_1,
    stage_2,
    stage_3,
    with_own_targets,
)
from tests.training.pairalign.world import CENTROIDS, SHAPE, STAGE, world

pytestmark = pytest.mark.training

CPU = torch.device("cpu")
BY_STEPS = replace(STAGE, minutes=30.0, checkpoint_s=60.0, learning_rate=3e-3)


def trained(work: Path, stages: list, seed: int = 0) -> Decoder:  # type: ignore[type-arg]
    torch.manual_seed(seed)
    return run(Decoder(SHAPE, CENTROIDS), world(), stages, work, CPU, lambda _: None)


def test_stages_teach_the_decoder_to_write_what_is_there(tmp_path: Path) -> None:
    third = replace(
        BY_STEPS, name="three", steps=40, own_targets=True, contrast=0.2, contrasted=4, length=0.2,
        corruption=Corruption(),
    )  # fmt: skip
    examples = world()
    held = held_out_sets(examples, 40)
    torch.manual_seed(0)
    before = judge(Decoder(SHAPE, CENTROIDS), held["changed"], CPU)
    decoder = trained(tmp_path, [replace(BY_STEPS, steps=300), third])
    after = {name: judge(decoder, those, CPU) for name, those in held.items()}
    assert before["targets"] > 0.6
    assert after["changed"]["targets"] < 0.35
    assert after["word"]["views"] < 0.35
    assert 0.7 < after["changed"]["length"] < 1.3
    lines = [json.loads(line) for line in (tmp_path / LOG_FILE).read_text().splitlines()]
    assert [line["stage"] for line in lines] == sorted(line["stage"] for line in lines)
    assert {"tokens", "pointer", "length", "contrast"} <= lines[-1].keys()


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD.format(work=str(tmp_path))],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 300
    written = (tmp_path / STATE_FILE, tmp_path / LOG_FILE)
    while not all(path.exists() for path in written) and time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    state = torch.load(tmp_path / STATE_FILE, weights_only=True)
    at_kill = state["progress"]
    assert at_kill["step"] > 0

    # With its budget spent a stage takes no step: what comes back is the moving average that the state had.
    spent = replace(STAGE, minutes=at_kill["spent_s"] / 60)
    kept = trained(tmp_path, [spent], seed=1)
    assert all(torch.equal(p, state["average"][name]) for name, p in kept.named_parameters())
    assert torch.load(tmp_path / STATE_FILE, weights_only=True)["progress"]["stage"] == 1

    trained(tmp_path, [spent, replace(STAGE, name="two", minutes=0.02)])
    after = torch.load(tmp_path / STATE_FILE, weights_only=True)
    assert after["progress"]["stage"] == 2
    last = json.loads((tmp_path / LOG_FILE).read_text().splitlines()[-1])
    assert last["stage"] == "two"
    assert last["step"] > 0
    # The optimizer went on too: its steps are of both runs.
    steps = {int(moments["step"]) for moments in after["optimizer"]["state"].values()}
    assert max(steps) >= at_kill["step"] + last["step"]


class _Writes(Decoder):
    """A teacher that writes one token whatever it hears."""

    def write(self, memory, rate):  # type: ignore[no-untyped-def]
        written = super().write(memory, rate)
        ones = torch.ones_like(written.lengths)
        return replace(written, tokens=written.tokens[:, :1], starts=written.starts[:, :1], lengths=ones)


def test_a_teacher_that_collapsed_does_not_teach() -> None:
    examples = world().draw(20, Mixture(0.0, 1.0, 0.0), np.random.default_rng(0))
    sequences = with_own_targets(examples, _Writes(SHAPE, CENTROIDS), STAGE, CPU)
    for example, sequence in zip(examples, sequences, strict=True):
        if len(example.sequence.tokens) > 1:
            assert sequence is example.sequence


def test_pieces_of_a_batch_teach_what_the_batch_does() -> None:
    torch.manual_seed(0)
    decoder = Decoder(SHAPE, CENTROIDS)
    drawn = world().draw(11, Mixture(0.2, 0.3, 0.3), np.random.default_rng(3))
    sequences = [example.sequence for example in drawn]
    stage = replace(STAGE, pointer=0.0)

    def gradients(count: int) -> tuple[int, list[torch.Tensor]]:
        decoder.zero_grad()
        padded = 0
        for share, batch in pieces(drawn, sequences, count, SHAPE):
            (share * losses(decoder, batch, stage, torch.Generator())["tokens"]).backward()
            padded += int((batch.wanted < 0).sum())
        return padded, [p.grad.clone() for p in decoder.parameters() if p.grad is not None]

    (much, whole), (little, apart) = gradients(1), gradients(3)
    assert little < much
    for one, other in zip(whole, apart, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_no_language_has_more_words_than_the_others_together() -> None:
    assert fair(["en"] * 8 + ["nl", "nl", "fy", "fy"]).tolist() == [0.0625] * 8 + [0.125] * 4
    assert fair(["en", "en", "nl", "fy"]).tolist() == [0.25] * 4
    assert fair(["en", "en"]).tolist() == [0.5, 0.5]
    assert fair([]).tolist() == []


def test_the_stages_are_those_of_the_paper() -> None:
    one, two, three = stage_1(1), stage_2(1), stage_3(1)
    assert (one.mixture.clean, one.corruption, one.own_targets) == (1.0, None, False)
    assert two.mixture.clean + two.mixture.changed + two.mixture.alone < 1.0  # words by two speakers
    assert not two.own_targets
    assert three.own_targets
    assert three.corruption
    assert three.contrast
    assert three.length


_CHILD = """
import torch
from dataclasses import replace
from pathlib import Path
from model.training.pairalign.decoder import Decoder
from model.training.pairalign.stages import run
from tests.training.pairalign.world import CENTROIDS, SHAPE, STAGE, world
torch.set_num_threads(1)
torch.manual_seed(0)
decoder = Decoder(SHAPE, CENTROIDS)
run(decoder, world(), [replace(STAGE, minutes=5.0)], Path({work!r}), torch.device("cpu"), lambda _: None)
"""
