"""The price of a token change, raised until a second of speech has no more tokens than it may."""

from dataclasses import replace

import numpy as np
import pytest

from indexer.fitting import MOST_TOKENS_PER_S, PRICES, held_to_rate
from indexer.messages import Part
from model.codebook import Codebook

FRAME_S = 0.04


def wandering(noise: float, parts: int = 12, frames: int = 250) -> tuple[Codebook, list[Part]]:
    """A codebook, and parts that stay at a centroid for some frames each, with noise on every frame."""
    rng = np.random.default_rng(0)
    centroids = rng.standard_normal((64, 32)).astype(np.float32)
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    out = []
    for number in range(parts):
        at = np.repeat(rng.integers(0, 64, frames), 3)[:frames]
        x = centroids[at] + noise * rng.standard_normal((frames, 32)).astype(np.float32)
        speech = np.arange(frames) >= 50
        out.append(Part(number * frames, x / np.linalg.norm(x, axis=1, keepdims=True), speech))
    return Codebook(centroids), out


def rate(codebook: Codebook, parts: list[Part]) -> float:
    tokens = seconds = 0.0
    for part in parts:
        ids = codebook.tokenize(part.embeddings).astype(int)
        begins = [0, *(np.flatnonzero(ids[1:] != ids[:-1]) + 1).tolist()]
        tokens += sum(bool(part.speech[at]) for at in begins)
        seconds += part.speech.sum() * FRAME_S
    return tokens / seconds


def test_steady_speech_keeps_the_usual_price() -> None:
    codebook, parts = wandering(noise=0.02)
    assert rate(codebook, parts) < MOST_TOKENS_PER_S
    assert held_to_rate(codebook, parts, FRAME_S).switch_penalty == codebook.switch_penalty


def test_the_least_price_that_is_enough_is_taken() -> None:
    codebook, parts = wandering(noise=0.45)
    held = held_to_rate(codebook, parts, FRAME_S)
    at = PRICES.index(held.switch_penalty)
    assert 0 < at < len(PRICES) - 1
    assert rate(held, parts) <= MOST_TOKENS_PER_S < rate(replace(held, switch_penalty=PRICES[at - 1]), parts)
    assert held.sha256 != codebook.sha256


def test_where_no_price_is_enough_the_highest_is_taken() -> None:
    codebook, parts = wandering(noise=2.0)
    held = held_to_rate(codebook, parts, FRAME_S)
    assert held.switch_penalty == max(PRICES)
    assert rate(held, parts) > MOST_TOKENS_PER_S


@pytest.mark.parametrize("parts", [[], [Part(0, np.zeros((0, 32), np.float32), np.zeros(0, bool))]])
def test_nothing_to_count_changes_nothing(parts: list[Part]) -> None:
    codebook, _ = wandering(noise=0.1, parts=1)
    assert held_to_rate(codebook, parts, FRAME_S).switch_penalty == codebook.switch_penalty
