"""Stretches: found where they lie, told apart, with their times."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.codebook import Codebook
from service.search import rescoring
from service.search.candidates import everything
from service.search.stretches import Stretches, distinct, rescore, similarity_at, times_of
from tests.service.shards import FRAME_S, shard_of, unit, view_of

CODEBOOK = Codebook(unit(np.random.default_rng(0), 32, 8))


def stretches_of(rows: list[tuple[int, int, int, float]]) -> Stretches:
    """Of (segment, start, end, similarity) in the first part."""
    segment, start, end = (np.array([row[i] for row in rows], np.int64) for i in range(3))
    return Stretches(np.zeros(len(rows), np.int64), segment, start, end, np.array([r[3] for r in rows], np.float32))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 20), st.integers(1, 9), st.integers(0, 50)), max_size=25))
def test_distinct_agrees_with_the_textbook(rows: list[tuple[int, int, int, int]]) -> None:
    given_rows = [(segment, start, start + length, value / 50) for segment, start, length, value in rows]
    kept: list[tuple[int, int, int, float]] = []
    for row in sorted(given_rows, key=lambda r: (-np.float32(r[3]), r[0], r[1])):
        if not any(row[0] == k[0] and row[1] < k[2] and k[1] < row[2] for k in kept):
            kept.append(row)
    found = distinct(stretches_of(given_rows))
    assert list(zip(found.segment.tolist(), found.start.tolist(), strict=True)) == [(k[0], k[1]) for k in kept]
    assert found.similarity.tolist() == pytest.approx([k[3] for k in kept])


def test_rescoring_goes_through_all_parts() -> None:
    rng = np.random.default_rng(1)
    word = rng.integers(0, 16, 8)
    filler = [rng.integers(16, 32, 50) for _ in range(6)]
    filler[1][20:28] = filler[5][3:11] = word
    one, other = shard_of(filler[:3], CODEBOOK, [4, 4, 9]), shard_of(filler[3:], CODEBOOK, [11, 12, 13])
    view = view_of(one, other)
    tables = rescoring.make_tables(CODEBOOK.centroids[word], CODEBOOK)
    found = rescore(tables, view, everything(view, [part.alive for part in view.parts]))
    assert len(found) == 6
    best = found.take(np.argsort(-found.similarity)[:2])
    whole = 1.0 - CODEBOOK.crowding[word].mean()
    assert best.similarity == pytest.approx([whole, whole], abs=1e-5)
    assert sorted(zip(best.part.tolist(), best.segment.tolist(), best.start.tolist(), strict=True)) == [
        (0, 1, 70), (1, 2, 103),
    ]  # fmt: skip
    times = times_of(best, view)
    assert sorted(times.recording.tolist()) == [4, 13]
    assert sorted(times.fingerprint.tolist()) == [1_004, 1_013]
    assert sorted(times.start_s.tolist()) == pytest.approx([10.0 + 20 * FRAME_S, 20.0 + 3 * FRAME_S])
    assert times.end_s - times.start_s == pytest.approx(8 * FRAME_S)
    # Looked at again with slack, a place that was cut a little wrong is as like the word.
    shifted = Stretches(best.part, best.segment, best.start + 2, best.end + 2, best.similarity)
    assert similarity_at(tables, view, shifted, 2) == pytest.approx([whole, whole], abs=1e-5)
    assert max(similarity_at(tables, view, shifted, 0)) < whole - 0.01
    assert len(rescore(tables, view, everything(view, [part.alive & False for part in view.parts]))) == 0
