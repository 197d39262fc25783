import numpy as np
import pytest

from service.search.calibration import LogisticMap, measure


def test_background_is_robust_to_a_few_true_hits() -> None:
    rng = np.random.default_rng(0)
    similarities = rng.normal(0.3, 0.05, 200).astype(np.float32)
    clean = measure(similarities)
    similarities[:10] = 0.95
    assert measure(similarities).median == pytest.approx(clean.median, abs=0.01)
    assert measure(similarities).spread == pytest.approx(0.05, abs=0.01)


def test_distance_counts_spreads() -> None:
    background = measure(np.array([0.1, 0.2, 0.3, 0.4, 0.5], np.float32))
    assert background.distance(background.median) == 0
    assert background.distance(0.6) == pytest.approx(0.3 / (1.4826 * 0.1), rel=1e-4)
    assert measure(np.full(5, 0.4, np.float32)).spread == 0.01
    assert measure(np.zeros(0, np.float32)).distance(0.5) == 0.5


def test_scores_rise_with_distance_within_zero_and_one() -> None:
    scores = [LogisticMap(1.2, 2.0, -4.0).score(d, 0.5) for d in (-1e4, -1.0, 0.0, 4.0, 9.0, 1e4)]
    assert scores == sorted(scores)
    assert scores[0] == 0.0
    assert scores[-1] == 1.0
    assert LogisticMap(1.2, 2.0, -4.0).score(3.0 / 1.2, 0.5) == pytest.approx(0.5)
    assert LogisticMap(1.2, 2.0, -4.0).score(1.0, 0.6) > LogisticMap(1.2, 2.0, -4.0).score(1.0, 0.5)
