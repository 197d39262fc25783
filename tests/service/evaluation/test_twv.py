import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import det_curve

from service.evaluation.judging import Judged
from service.evaluation.twv import Curve, actual_twv, curve, implied_threshold, maximum_twv

ONE = Judged(((0.9, True), (0.5, False)), 2)
TWO = Judged(((0.8, True), (0.6, False), (0.4, True)), 2)
UNSAID = Judged(((0.99, False),), 0)

# Few different scores, so that many are equal; as many right ones as there can be.
answers = st.lists(
    st.lists(st.tuples(st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9]), st.booleans()), max_size=12).map(
        lambda hits: Judged(
            tuple(sorted(hits, key=lambda hit: -hit[0])), max(1, sum(correct for _, correct in hits) + len(hits) % 3)
        )
    ),
    min_size=1,
    max_size=5,
)


def test_actual_twv_by_hand() -> None:
    # At .6: the first query has found 1 of 2, the second 1 of 2 with one false alarm among 100 - 2 trials.
    point = actual_twv([ONE, TWO], trials=100, beta=10, threshold=0.6)
    assert point.miss == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert point.false_alarm == pytest.approx((0 + 1 / 98) / 2)
    assert point.twv == pytest.approx(1 - 1 / 2 - 10 / 98 / 2)
    # Above all scores nothing is answered: all missed, and no false alarm.
    assert actual_twv([ONE, TWO], 100, 10, 0.95).twv == 0.0
    assert actual_twv([], 100, 10, 0.5).twv == 0.0


def test_maximum_twv_by_hand() -> None:
    # At .8: both found half, no false alarm: (1/2 + 1/2) / 2. At .4: 1/2 + 2/2 less two false alarms of 10 / 98.
    low = (0.5 + 1.0 - 2 * 10 / 98) / 2
    assert maximum_twv([ONE, TWO], trials=100, beta=10) == (pytest.approx(low), 0.4)
    assert maximum_twv([ONE, TWO], trials=100, beta=100) == (pytest.approx(0.5), 0.8)
    assert maximum_twv([Judged(((0.9, False),), 1)], 10, 1) == (0.0, 1.0)
    assert maximum_twv([], 10, 1) == (0.0, 1.0)


def test_the_curve_by_hand() -> None:
    drawn = curve([ONE, TWO], trials=100, beta=10)
    assert drawn.thresholds.tolist() == [0.9, 0.8, 0.6, 0.5, 0.4]
    assert drawn.miss.tolist() == pytest.approx([3 / 4, 2 / 4, 2 / 4, 2 / 4, 1 / 4])
    assert drawn.false_alarm.tolist() == pytest.approx([0, 0, 1 / 196, 2 / 196, 2 / 196])
    assert drawn.twv.tolist() == pytest.approx([0.25, 0.5, 0.5 - 10 / 196, 0.5 - 20 / 196, 0.75 - 20 / 196])


def test_equal_scores_pass_together() -> None:
    judged = Judged(((0.5, True), (0.5, False)), 1)
    assert maximum_twv([judged], trials=2, beta=0.25) == (pytest.approx(0.75), 0.5)
    assert len(curve([judged, judged], trials=2, beta=0.25)) == 1


def test_queries_without_references_do_not_count() -> None:
    assert maximum_twv([ONE, TWO, UNSAID], 100, 10) == maximum_twv([ONE, TWO], 100, 10)
    assert actual_twv([ONE, TWO, UNSAID], 100, 10, 0.4) == actual_twv([ONE, TWO], 100, 10, 0.4)


def test_misses_and_false_alarms_agree_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        right = rng.random(60) < 0.3
        right[:2] = (True, False)
        scores = np.round(rng.random(60), 2)  # with ties
        order = np.argsort(-scores)
        hits = tuple(zip(scores[order].tolist(), right[order].tolist(), strict=True))
        judged = Judged(hits, int(right.sum()))
        # One query of which all 60 trials are ranked is a detector of two classes.
        false_alarm, miss, thresholds = det_curve(right, scores)
        drawn = curve([judged], trials=60, beta=1.0)
        for fa, fn, threshold in zip(false_alarm, miss, thresholds, strict=True):
            if not np.isfinite(threshold):
                continue  # answering nothing is no point of ours
            at = int(np.flatnonzero(drawn.thresholds == threshold)[0])
            assert (drawn.false_alarm[at], drawn.miss[at]) == (pytest.approx(fa), pytest.approx(fn))


@given(answers, st.floats(0, 100), st.floats(0, 1))
def test_no_threshold_is_better_than_the_best(judged: list[Judged], beta: float, threshold: float) -> None:
    best, at = maximum_twv(judged, 50, beta)
    assert best >= actual_twv(judged, 50, beta, threshold).twv - 1e-9
    assert best == pytest.approx(actual_twv(judged, 50, beta, at).twv if best > 0 else 0.0)


@given(answers, st.floats(0, 100))
def test_the_curve_is_what_each_threshold_gives_and_its_maximum_is_mtwv(judged: list[Judged], beta: float) -> None:
    drawn = curve(judged, 50, beta)
    assert maximum_twv(judged, 50, beta)[0] == pytest.approx(max(0.0, drawn.twv.max(initial=0.0)))
    assert (np.diff(drawn.thresholds) < 0).all()
    for number in range(len(drawn)):
        point = drawn.point(number)
        actual = actual_twv(judged, 50, beta, point.threshold)
        assert (point.twv, point.miss, point.false_alarm) == pytest.approx(
            (actual.twv, actual.miss, actual.false_alarm), abs=1e-9
        )


@given(st.integers(0, 5_000), st.integers(8, 300), st.integers(0, 100))
def test_a_thinned_curve_keeps_its_ends_and_its_maximum(size: int, points: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.random((3, size))
    full = Curve(np.sort(rng.random(size) ** 8)[::-1], *values)
    few = full.thinned(points)
    assert len(few) <= max(points, 8)
    assert set(few.thresholds) <= set(full.thresholds)
    assert few.maximum() == full.maximum()
    if size:
        assert (few.thresholds[0], few.thresholds[-1]) == (full.thresholds[0], full.thresholds[-1])


def test_the_implied_threshold_by_hand() -> None:
    # The scores lead to expect (.9 + .5 + .8 + .6 + .4) / 2 = 1.6 places a query, of 100.
    assert implied_threshold([ONE, TWO], trials=100, beta=10) == pytest.approx(16 / (100 - 1.6 + 16))
    assert implied_threshold([ONE, TWO], trials=100, beta=0) == 0.0
    assert implied_threshold([], 100, 10) == 1.0


def test_where_scores_are_probabilities_no_threshold_is_better_than_the_implied_one() -> None:
    rng = np.random.default_rng(3)
    judged = []
    for _ in range(400):
        hits = [(float(p), bool(rng.random() < p)) for p in np.sort(rng.beta(0.1, 1.5, 60))[::-1]]
        judged.append(Judged(tuple(hits), max(1, sum(right for _, right in hits))))
    for beta in (2.0, 12.49, 100.0):
        at = implied_threshold(judged, 900, beta)
        best, _ = maximum_twv(judged, 900, beta)
        assert actual_twv(judged, 900, beta, at).twv > best - 0.01
    assert actual_twv(judged, 900, 2.0, 0.5).twv < maximum_twv(judged, 900, 2.0)[0] - 0.05
