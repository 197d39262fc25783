import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from service.evaluation.reliability import Bin, reliability


def test_by_hand() -> None:
    # .9 to 1: scores .92 and .98 (mean .95), one right of two. .2 to .3: .25, wrong. Below .05: not counted.
    told = reliability([0.92, 0.98, 0.25, 0.01], [True, False, False, True])
    assert told.bins == (Bin(0.2, 0.3, 1, 0.25, 0.0), Bin(0.9, 1.0, 2, pytest.approx(0.95), 0.5))
    # (1 * |.25 - 0| + 2 * |.95 - .5|) / 3
    assert told.error == pytest.approx((0.25 + 2 * 0.45) / 3)


def test_weights_are_like_so_many_hits() -> None:
    once = reliability([0.92, 0.98, 0.25], [True, False, False], [3.0, 1.0, 2.0])
    often = reliability([0.92] * 3 + [0.98] + [0.25] * 2, [True] * 3 + [False] * 3)
    assert once.error == pytest.approx(often.error)


def test_bins_agree_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores = rng.random(300)
        right = rng.random(300) < scores**2
        told = reliability(scores, right, least=0.0)
        share, mean = calibration_curve(right, scores, n_bins=10)
        assert [b.right for b in told.bins] == pytest.approx(share)
        assert [b.score for b in told.bins] == pytest.approx(mean)


def test_who_keeps_a_promise_has_no_error() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random(200_000)
    error = reliability(scores, rng.random(200_000) < scores).error
    assert error is not None
    assert error < 0.01


def test_nothing_to_count() -> None:
    assert reliability([], []).error is None
    assert reliability([0.01, -3.0], [True, False]).bins == ()


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=50))
def test_the_error_is_a_share_and_all_hits_are_in_a_bin(hits: list[tuple[float, bool]]) -> None:
    told = reliability([score for score, _ in hits], [right for _, right in hits], least=0.0)
    assert sum(b.hits for b in told.bins) == len(hits)
    assert told.error is not None
    assert 0.0 <= told.error <= 1.0
