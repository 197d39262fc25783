import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from service.evaluation.judging import Judged
from service.evaluation.metrics import average_precision, precision_at, reciprocal_rank


def test_by_hand() -> None:
    judged = Judged(((0.9, True), (0.8, False), (0.6, False), (0.5, True)), 3)
    # Right ones at ranks 1 and 4: precisions 1/1 and 2/4, and nothing for the third.
    assert average_precision(judged) == pytest.approx((1 + 2 / 4 + 0) / 3)
    assert reciprocal_rank(judged) == 1.0
    assert precision_at(judged, 2) == pytest.approx(1 / 2)
    assert precision_at(judged, 10) == pytest.approx(2 / 10)


def test_average_precision_agrees_with_scikit_learn_where_all_is_ranked() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        right = rng.random(40) < 0.3
        right[0] = True
        scores = np.sort(rng.random(40))[::-1]
        judged = Judged(tuple(zip(scores.tolist(), right.tolist(), strict=True)), int(right.sum()))
        assert average_precision(judged) == pytest.approx(average_precision_score(right, scores))


def test_what_was_not_found_costs() -> None:
    assert average_precision(Judged(((0.9, True),), 4)) == pytest.approx(0.25)
    assert average_precision(Judged((), 4)) == 0.0
    assert reciprocal_rank(Judged(((0.9, False), (0.8, True)), 1)) == 0.5
    assert reciprocal_rank(Judged(((0.9, False),), 1)) == 0.0
