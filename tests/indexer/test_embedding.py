"""Segments have exactly the embeddings of one pass, whatever windows, rows and chunks they come by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from indexer.embedding import Embedder, parts_of
from indexer.segment import Segmenter
from model import audio
from model.tokenizer import Tokenizer
from tests.service.conftest import DEMO


@pytest.fixture(scope="module")
def tokenizer(tokenizer_path: Path) -> Tokenizer:
    return Tokenizer(tokenizer_path, threads=1)


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """Almost two minutes, which do not end with a frame."""
    files = sorted((DEMO / "archive" / "skerry-radio").iterdir())[:6]
    return np.concatenate([audio.read(path) for path in files])[: 16_000 * 110 + 333]


@pytest.fixture(scope="module")
def one_pass(speech: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    return tokenizer.embed_rows(speech[None])[0]


def chunks(speech: np.ndarray, size: int) -> list[np.ndarray]:
    return [speech[start : start + size] for start in range(0, len(speech), size)]


@pytest.mark.parametrize(
    ("window_s", "rows", "chunk"),
    [(40.0, 1, 16_000), (7.0, 3, 50_001), (3.0, 4, 333), (200.0, 2, 160_000), (0.04, 1, 64_000)],
)
def test_windows_give_what_one_pass_gives(
    speech: np.ndarray, one_pass: np.ndarray, tokenizer: Tokenizer, window_s: float, rows: int, chunk: int
) -> None:
    part = speech if window_s > 1.0 else speech[:80_000]
    expected = one_pass if window_s > 1.0 else tokenizer.embed_rows(part[None])[0]
    embedder = Embedder(tokenizer, rows, window_s)
    found, at = [], 0
    for one in chunks(part, chunk):
        embedder.take(one)
        while embedder.frames - at >= 25:  # claimed with an overlap, as segments are
            got = embedder.claim(at, 25)
            found.append(got[:20])
            at += 20
    embedder.end()
    found.append(embedder.claim(at, embedder.frames - at))
    np.testing.assert_array_equal(np.concatenate(found), expected[: len(part) // 640])


def test_segments_have_their_frames_of_it(speech: np.ndarray, one_pass: np.ndarray, tokenizer: Tokenizer) -> None:
    def cutter() -> Segmenter:
        return Segmenter(tokenizer.info.left_context_samples, tokenizer.info.right_context_samples)

    segments = list(cutter().segments(chunks(speech, 16_000)))
    parts = list(parts_of(iter(chunks(speech, 16_000)), cutter(), tokenizer))
    assert len(parts) == len(segments) > 5
    for part, segment in zip(parts, segments, strict=True):
        assert part.start_frame == segment.start_frame
        np.testing.assert_array_equal(part.speech, segment.speech)
        np.testing.assert_array_equal(
            part.embeddings, one_pass[segment.start_frame : segment.start_frame + segment.frames]
        )


@pytest.mark.parametrize("samples", [0, 639, 640, 16_000])
def test_what_is_short(samples: int, speech: np.ndarray, tokenizer: Tokenizer) -> None:
    parts = list(parts_of([speech[:samples]], Segmenter(41_600, 41_600), tokenizer))
    assert sum(len(part.embeddings) for part in parts) == samples // 640


def test_what_is_held_does_not_grow(speech: np.ndarray, tokenizer: Tokenizer) -> None:
    embedder = Embedder(tokenizer, 1, 5.0)
    held = []
    for one in chunks(speech, 8_000):
        embedder.take(one)
        if embedder.frames:
            embedder.claim(embedder.frames, 0)
        held.append(embedder._held)
    assert max(held) < 16_000 * (5.0 + 2 * 2.64 + 0.5)
    assert len(embedder._embedded) == 0
