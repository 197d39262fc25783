"""Simulated rooms: direct sound first, a tail that dies away, and a bank that is made once."""

from pathlib import Path

import numpy as np
import pytest
import torch

from model.audio import SAMPLE_RATE
from model.training import rooms
from model.training.augment import Augmentation, augment

pytestmark = pytest.mark.training


def test_responses_begin_with_the_direct_sound_and_die_away() -> None:
    made = rooms.simulate(12, seed=1)
    assert made.shape == (12, round(rooms.RESPONSE_S * SAMPLE_RATE))
    assert np.linalg.norm(made, axis=1) == pytest.approx(np.ones(12), rel=1e-5)
    energy = made.astype(np.float64) ** 2
    early, late = energy[:, :1_600].sum(1), energy[:, -1_600:].sum(1)
    assert (early > 30 * late).all()
    assert (np.abs(made).argmax(1) < 0.02 * SAMPLE_RATE).all()
    assert (rooms.simulate(12, seed=1) == made).all()
    assert len({tuple(row[:50]) for row in made.tolist()}) == 12


def test_the_bank_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "ROOMS", 3)
    monkeypatch.setattr(rooms.simulate, "__defaults__", (3, 0))
    first = rooms.load_rooms(tmp_path)
    assert first is not None
    monkeypatch.setattr(rooms, "simulate", lambda: pytest.fail("made again"))
    again = rooms.load_rooms(tmp_path)
    assert again is not None
    assert torch.equal(first, again)


def test_half_of_the_rows_in_a_room_are_in_one_of_the_bank() -> None:
    spec = Augmentation((0.0, 0.0), noise=0.0, room=1.0, tilt=0.0, telephone=0.0, companding=0.0)
    click = torch.zeros(64, 4_000)
    click[:, 0] = 0.5
    bank = torch.zeros(2, 100)
    bank[0, 40], bank[1, 70] = 1.0, 1.0
    heard = augment(click, torch.zeros_like(click), spec, torch.Generator().manual_seed(0), bank)
    at = heard.abs().argmax(1).tolist()
    assert {40, 70} <= set(at)
    for seed in range(8):  # one row alone, which may be in none of them
        augment(click[:1], torch.zeros(1, 4_000), spec, torch.Generator().manual_seed(seed), bank)
    assert 16 <= sum(place in (40, 70) for place in at) <= 48
    assert sum(place == 0 for place in at) == 64 - sum(place in (40, 70) for place in at)
