"""Warping against textbook dynamic programming, and same-different against average precision by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.training.alignment import path_similarity, same_different, warp

pytestmark = pytest.mark.training


def textbook_cost(similarity: np.ndarray) -> float:
    """Least sum of 1 - similarity over all monotone paths, by recursion over the cells before."""
    cost = 1.0 - similarity.astype(np.float64)
    total = np.full((cost.shape[0] + 1, cost.shape[1] + 1), np.inf)
    total[0, 0] = 0.0
    for i in range(1, total.shape[0]):
        for j in range(1, total.shape[1]):
            total[i, j] = cost[i - 1, j - 1] + min(total[i - 1, j - 1], total[i - 1, j], total[i, j - 1])
    return float(total[-1, -1])


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1), st.booleans())
def test_the_path_is_a_best_one(n: int, m: int, seed: int, coarse: bool) -> None:
    rng = np.random.default_rng(seed)
    # Coarse values make many paths cost the same.
    similarity = (rng.integers(-1, 2, (n, m)) if coarse else rng.uniform(-1, 1, (n, m))).astype(np.float32)
    path = warp(similarity)
    assert path[0].tolist() == [0, 0]
    assert path[-1].tolist() == [n - 1, m - 1]
    assert {tuple(step) for step in np.diff(path, axis=0).tolist()} <= {(0, 1), (1, 0), (1, 1)}
    cost = float((1.0 - similarity[path[:, 0], path[:, 1]].astype(np.float64)).sum())
    assert cost == pytest.approx(textbook_cost(similarity), abs=1e-4)


def test_a_stretch_said_slowly_is_aligned_to_itself() -> None:
    frames = np.eye(5, dtype=np.float32)
    slow = np.repeat(frames, [1, 3, 2, 1, 2], axis=0)
    path = warp(np.ascontiguousarray(frames @ slow.T))
    assert path[:, 0].tolist() == [0, 1, 1, 1, 2, 2, 3, 4, 4]
    assert path[:, 1].tolist() == list(range(9))
    assert path_similarity(frames, slow) == pytest.approx(1.0)
    assert path_similarity(frames, -frames) < 0


def test_of_equal_paths_the_diagonal_is_taken() -> None:
    assert warp(np.ones((4, 4), np.float32)).tolist() == [[0, 0], [1, 1], [2, 2], [3, 3]]


def one_frame(degrees: float) -> np.ndarray:
    return np.array([[np.cos(np.radians(degrees)), np.sin(np.radians(degrees))]], np.float32)


def test_same_different_agrees_with_average_precision_by_hand() -> None:
    # Angles: a by x 0, a by y 10, b by x 15, b by y 40, c by z 100; pairs of one speaker do not count.
    stretches = [one_frame(degrees) for degrees in (0, 10, 15, 40, 100)]
    labels, speakers = ["a", "a", "b", "b", "c"], ["x", "y", "x", "y", "z"]
    # By angle: 5 (a y, b x), 10 (a x, a y: hit), 25 (b x, b y: hit), 40 (a x, b y), then those with c.
    assert same_different(stretches, labels, speakers) == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_same_different_passes_over_empty_stretches_and_lack_of_pairs() -> None:
    nothing = np.zeros((0, 2), np.float32)
    assert same_different([one_frame(0), one_frame(5), nothing], ["a", "a", "a"], ["x", "y", "z"]) == 1.0
    assert same_different([one_frame(0), one_frame(5)], ["a", "b"], ["x", "y"]) == 0.0
    assert same_different([one_frame(0), one_frame(5)], ["a", "a"], ["x", "x"]) == 0.0
    assert same_different([], [], []) == 0.0
