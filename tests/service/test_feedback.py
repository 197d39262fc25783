"""More examples: what is like the query's best match rises, and so does what is like a hit that was called right."""

import numpy as np
import pytest

from model.codebook import Codebook
from model.tokens import TokenString
from service.search import feedback, rescoring
from service.search.calibration import Background, Evidence
from service.search.feedback import Setting, embeddings_of, marked, second_look
from service.search.stretches import Stretches
from tests.service.shards import FRAME_S, shard_of, unit, view_of

CODEBOOK = Codebook(unit(np.random.default_rng(0), 64, 16))
BACKGROUND = Background(median=0.2, spread=0.04)
WORD = [3, 7, 12, 20, 25, 30]
OTHER = [1, 9, 14, 22, 27, 31]


def said(ids: list[int], at: int) -> np.ndarray:
    """`ids` a frame each at `at` in a segment of 40 frames of other tokens."""
    frames = np.random.default_rng(at).integers(32, 64, 40)
    frames[at : at + len(ids)] = ids
    return frames


def sample() -> rescoring.Codes:
    rng = np.random.default_rng(9)
    return rescoring.gather([TokenString.from_frames(rng.integers(0, 64, 50), FRAME_S) for _ in range(60)], 0)


def found(*places: tuple[list[int], int, float]) -> tuple[Stretches, Evidence, Setting]:
    """Places of words in segments of their own, with their similarities to some query, best first."""
    made = shard_of([said(ids, at) for ids, at, _ in places], CODEBOOK)
    at, count = np.array([p[1] for p in places], np.int64), len(places)
    start = at + 40 * np.arange(count)
    similarity = np.array([p[2] for p in places], np.float32)
    stretches = Stretches(np.zeros(count, np.int64), np.arange(count), start, start + 6, similarity)
    first = Evidence(BACKGROUND.distance(similarity), similarity)
    return stretches, first, Setting(view_of(made), CODEBOOK, sample())


def asked(*ids: int) -> rescoring.Tables:
    """A query of these tokens, which is like no place where there are none."""
    query = CODEBOOK.centroids[list(ids)] if ids else -CODEBOOK.centroids[:6]
    return rescoring.make_tables(query, CODEBOOK)


def scores(*places: tuple[list[int], int, float], query: rescoring.Tables | None = None) -> list[float]:
    return second_look(query or asked(), *found(*places)).scores.tolist()


def test_of_two_that_are_as_near_the_one_like_the_best_match_comes_first() -> None:
    ranked = scores((WORD, 10, 0.8), (WORD, 22, 0.5), (OTHER, 5, 0.5))
    assert ranked[0] >= ranked[1] > ranked[2]
    assert scores((WORD, 10, 0.8), (OTHER, 5, 0.5), (WORD, 22, 0.5))[2] == pytest.approx(ranked[1])


def test_one_that_is_near_the_edge_of_its_place_is_found_with_the_frames_beside_it() -> None:
    stretches, first, setting = found((WORD, 10, 0.8), (WORD, 22, 0.5), (OTHER, 5, 0.5))
    whole = second_look(asked(), stretches, first, setting).scores
    by = np.array([0, 1, 0])
    late = Stretches(stretches.part, stretches.segment, stretches.start + by, stretches.end + by, stretches.similarity)
    assert second_look(asked(), late, first, setting).scores[1] == pytest.approx(whole[1])


def test_a_best_match_that_is_likely_wrong_says_next_to_nothing() -> None:
    stretches, first, setting = found((WORD, 10, 0.25), (WORD, 22, 0.22), (OTHER, 5, 0.22))
    evidence = second_look(asked(), stretches, first, setting)
    assert evidence.similarity == pytest.approx(first.similarity, abs=0.01)
    assert evidence.distance == pytest.approx(first.distance, abs=0.3)


def test_the_query_itself_in_the_archive_is_no_second_example() -> None:
    places = (OTHER, 2, 0.99), (WORD, 10, 0.8), (WORD, 22, 0.5), (OTHER, 5, 0.5)
    ranked = scores(*places, query=asked(*OTHER))
    assert ranked[0] >= ranked[1] >= ranked[2] > ranked[3]
    as_an_example = scores(*places)
    assert as_an_example[3] > as_an_example[2]


def test_the_query_is_known_frame_by_frame_and_by_nothing_less() -> None:
    ids = np.array(OTHER)
    assert feedback.alongside(asked(*OTHER), ids) == pytest.approx(1.0)
    assert feedback.alongside(asked(*OTHER), np.repeat(ids, 2)) == pytest.approx(1.0)
    assert feedback.alongside(asked(*OTHER), ids[::-1]) < feedback.SAME


@pytest.mark.parametrize("further", [False, True])
def test_the_query_is_known_by_its_codes_too_where_there_are_any(further: bool) -> None:
    rng = np.random.default_rng(3)
    if further:
        more = rng.standard_normal((2, *CODEBOOK.centroids.shape)).astype(np.float32)
        more /= np.linalg.norm(more, axis=2, keepdims=True)
        coded = Codebook(CODEBOOK.centroids, further=more)
        pq = rng.integers(0, coded.size, (6, 2)).astype("<u2").view(np.uint8)
    else:
        coded = Codebook(CODEBOOK.centroids, 0.2 * rng.standard_normal((2, 4, 8)).astype(np.float32))
        pq = rng.integers(0, 4, (6, 2)).astype(np.uint8)
    said = TokenString.from_frames(np.array(OTHER), FRAME_S, 0.0, pq)
    unlike = TokenString.from_frames(np.array(OTHER), FRAME_S, 0.0, pq[::-1])
    tables = rescoring.make_tables(embeddings_of(said, coded), coded)
    assert feedback._alike(tables, said, coded) == pytest.approx(1.0, abs=1e-5)
    query, other = embeddings_of(said, coded), embeddings_of(unlike, coded)
    assert feedback._alike(tables, unlike, coded) == pytest.approx((query * other).sum(axis=1).mean(), abs=1e-5)
    assert feedback._alike(tables, unlike, coded) < feedback.SAME


def test_one_place_or_none_stays_as_it_is() -> None:
    stretches, first, setting = found((WORD, 10, 0.8))
    assert second_look(asked(), stretches, first, setting) is first
    none = stretches.take(np.zeros(0, np.int64))
    nothing = Evidence(first.distance[:0], first.similarity[:0])
    assert second_look(asked(), none, nothing, setting) is nothing


def test_what_is_not_looked_at_again_counts_as_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    places = ((WORD, 10, 0.8), (WORD, 22, 0.5), (WORD, 5, 0.45))
    whole = scores(*places)
    monkeypatch.setattr(feedback, "DEPTH", 2)
    short = scores(*places)
    assert short[:2] == pytest.approx(whole[:2])
    assert short[2] < whole[2]


def test_what_is_like_a_right_hit_rises_and_what_is_like_a_wrong_one_falls() -> None:
    stretches, first, setting = found((WORD, 10, 0.5), (OTHER, 22, 0.5), (WORD, 5, 0.5), (OTHER, 15, 0.5))
    word, other = (stretches.tokens(setting.view, n) for n in (0, 1))
    for right, wrong in (([word], []), ([], [other]), ([word], [other])):
        judged = marked(stretches, first, setting, right, wrong).scores
        assert judged[2] > judged[3]
    helped = marked(stretches, first, setting, [word], []).scores
    harmed = marked(stretches, first, setting, [], [other]).scores
    assert helped[2] > first.scores[2]
    assert harmed[3] < first.scores[3]
    assert harmed[2] == pytest.approx(first.scores[2], abs=0.05)
    assert marked(stretches, first, setting, [], []).scores == pytest.approx(first.scores)


def test_codes_of_residuals_are_part_of_what_a_stretch_stands_for() -> None:
    rng = np.random.default_rng(1)
    codebook = Codebook(CODEBOOK.centroids, 0.1 * rng.standard_normal((4, 256, 4)).astype(np.float32))
    ids, pq = np.array(WORD, np.uint16), rng.integers(0, 256, (6, 4)).astype(np.uint8)
    tokens = TokenString.from_frames(ids, FRAME_S, 0.0, pq)
    decoded = codebook.decode(ids[1:5], pq[1:5])
    expected = decoded / np.linalg.norm(decoded, axis=1, keepdims=True)
    assert embeddings_of(tokens.part(1, 5), codebook) == pytest.approx(expected, abs=1e-6)
