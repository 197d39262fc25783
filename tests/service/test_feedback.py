"""The second look: what is like the query's best match rises, as far as that match is to be trusted."""

import numpy as np
import pytest

from model.codebook import Codebook
from model.tokens import TokenString
from service.search import feedback, rescoring
from service.search.calibration import Background
from service.search.feedback import Stretch, embeddings_of, second_look

FRAMES = 6
BACKGROUND = Background(median=0.2, spread=0.04)


def unit(x: np.ndarray) -> np.ndarray:
    return np.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True), np.float32)


CODEBOOK = Codebook(unit(np.random.default_rng(0).standard_normal((64, 16))))


def said(ids: list[int], at: int, similarity: float) -> Stretch:
    """`ids` a frame each at `at` in a segment of 40 frames of other tokens."""
    rng = np.random.default_rng(at)
    frames = rng.integers(32, 64, 40).astype(np.uint16)
    frames[at : at + len(ids)] = ids
    return Stretch(TokenString.from_frames(frames, 0.04), at, at + len(ids), similarity)


def sample() -> rescoring.Codes:
    rng = np.random.default_rng(9)
    return rescoring.gather(
        [TokenString.from_frames(rng.integers(0, 64, 50).astype(np.uint16), 0.04) for _ in range(60)], 0
    )


WORD = [3, 7, 12, 20, 25, 30]
OTHER = [1, 9, 14, 22, 27, 31]


def scores(*stretches: Stretch, background: Background = BACKGROUND) -> list[float]:
    return [e.score for e in second_look(stretches, background, CODEBOOK, sample(), FRAMES)]


def test_of_two_that_are_as_near_the_one_like_the_best_match_comes_first() -> None:
    best, same, other = said(WORD, 10, 0.8), said(WORD, 22, 0.5), said(OTHER, 5, 0.5)
    found = scores(best, same, other)
    assert found[0] >= found[1] > found[2]
    assert scores(best, other, same)[2] == pytest.approx(found[1])  # whatever their order
    # One that is near the edge of its match is found with the frames beside it.
    late = Stretch(same.tokens, same.start + 1, same.end + 1, 0.5)
    assert scores(best, late, other)[1] == pytest.approx(found[1])


def test_a_best_match_that_is_likely_wrong_says_next_to_nothing() -> None:
    stretches = said(WORD, 10, 0.25), said(WORD, 22, 0.22), said(OTHER, 5, 0.22)
    evidence = second_look(stretches, BACKGROUND, CODEBOOK, sample(), FRAMES)
    for stretch, e in zip(stretches, evidence, strict=True):
        assert e.similarity == pytest.approx(stretch.similarity, abs=0.01)
        assert e.distance == pytest.approx(BACKGROUND.distance(stretch.similarity), abs=0.3)


def test_the_query_itself_in_the_archive_is_no_second_example() -> None:
    itself, best, same, other = said(OTHER, 2, 0.99), said(WORD, 10, 0.8), said(WORD, 22, 0.5), said(OTHER, 5, 0.5)
    found = scores(itself, best, same, other)
    assert found[0] >= found[1] >= found[2] > found[3]


def test_one_match_or_none_stays_as_it_is() -> None:
    assert second_look([], BACKGROUND, CODEBOOK, sample(), FRAMES) == []
    (alone,) = second_look([said(WORD, 10, 0.8)], BACKGROUND, CODEBOOK, sample(), FRAMES)
    assert (alone.similarity, alone.distance) == (0.8, BACKGROUND.distance(0.8))


def test_what_is_not_looked_at_again_counts_as_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    stretches = said(WORD, 10, 0.8), said(WORD, 22, 0.5), said(WORD, 5, 0.45)
    whole = scores(*stretches)
    monkeypatch.setattr(feedback, "DEPTH", 2)
    short = scores(*stretches)
    assert short[:2] == pytest.approx(whole[:2])
    assert short[2] < whole[2]


def test_codes_of_residuals_are_part_of_what_a_stretch_stands_for() -> None:
    rng = np.random.default_rng(1)
    codebook = Codebook(CODEBOOK.centroids, 0.1 * rng.standard_normal((4, 256, 4)).astype(np.float32))
    ids, pq = np.array(WORD, np.uint16), rng.integers(0, 256, (6, 4)).astype(np.uint8)
    tokens = TokenString.from_frames(ids, 0.04, 0.0, pq)
    found = embeddings_of(tokens.part(1, 5), codebook)
    assert found == pytest.approx(unit(codebook.decode(ids[1:5], pq[1:5])), abs=1e-6)
