import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from service.evaluation import (
    Judged,
    Place,
    Ranked,
    TaskError,
    TaskQuery,
    average_precision,
    figures,
    judge,
    maximum_twv,
    precision_at,
    read_task,
    reciprocal_rank,
)

QUERY = TaskQuery(
    clip="q.flac",
    source=Place("own.opus", 1.0, 1.5),
    exclude=frozenset({"own.opus"}),
    relevant=(Place("a.opus", 2.0, 2.5), Place("a.opus", 7.0, 7.4), Place("b.opus", 0.2, 0.6)),
    oov=False,
)
HITS = [
    Ranked("own.opus", 1.0, 1.5, 0.99),  # the query's own source never counts
    Ranked("a.opus", 2.1, 2.6, 0.9),
    Ranked("c.opus", 0.0, 0.5, 0.8),
    Ranked("a.opus", 2.0, 2.4, 0.7),  # the same place again
    Ranked("a.opus", 7.3, 8.6, 0.6),  # its middle lies 0.55 s after the end
    Ranked("b.opus", 0.7, 1.4, 0.5),  # its middle lies 0.45 s after the end
]


def test_by_file_a_recording_counts_once() -> None:
    judged = judge(QUERY, HITS, located=False)
    assert judged == Judged(((0.9, True), (0.8, False), (0.5, True)), 2)
    assert average_precision(judged) == pytest.approx((1 + 2 / 3) / 2)


def test_located_a_reference_counts_once_and_needs_its_time() -> None:
    judged = judge(QUERY, HITS, located=True)
    assert judged == Judged(((0.9, True), (0.8, False), (0.6, False), (0.5, True)), 3)
    assert average_precision(judged) == pytest.approx((1 + 2 / 4) / 3)
    assert reciprocal_rank(judged) == 1.0
    assert precision_at(judged, 10) == pytest.approx(0.2)


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


def test_maximum_twv_by_hand() -> None:
    one = Judged(((0.9, True), (0.5, False)), 2)
    two = Judged(((0.8, True), (0.6, False), (0.4, True)), 2)
    # At .8: both found half, no false alarm: (1/2 + 1/2) / 2. At .4: 1/2 + 2/2 less two false alarms of 10 / 98.
    low = (0.5 + 1.0 - 2 * 10 / 98) / 2
    assert maximum_twv([one, two], trials=100, beta=10) == (pytest.approx(low), 0.4)
    assert maximum_twv([one, two], trials=100, beta=100) == (pytest.approx(0.5), 0.8)
    assert maximum_twv([Judged(((0.9, False),), 1)], 10, 1) == (0.0, 1.0)


def test_equal_scores_pass_together() -> None:
    judged = Judged(((0.5, True), (0.5, False)), 1)
    assert maximum_twv([judged], trials=2, beta=0.25) == (pytest.approx(0.75), 0.5)


def test_figures_have_their_groups() -> None:
    oov = TaskQuery("r.flac", Place("x"), frozenset({"x"}), (Place("b.opus", 0.0, 1.0),), True)
    table = figures([QUERY, oov], {"q.flac": HITS}, recordings=10, audio_s=100.0)
    assert set(table) == {f"{level}/{group}" for level in ("file", "located") for group in ("all", "iv", "oov")}
    assert table["file/all"].map == pytest.approx(table["file/iv"].map / 2)  # an unanswered query counts zero
    untimed = TaskQuery("r.flac", Place("x"), frozenset(), (Place("b.opus"),), False)
    assert set(figures([untimed], {}, 10, 100.0)) == {"file/all", "file/iv"}


def test_task_files_are_read_and_bad_ones_refused(tmp_path: Path) -> None:
    good = {
        "queries": [{"clip": "a.flac", "source": ["s", 0.1, 0.2], "relevant": [["r", None, None]], "exclude": ["e"]}]
    }
    (tmp_path / "t.json").write_text(json.dumps(good))
    assert read_task(tmp_path / "t.json")[0].exclude == {"s", "e"}
    (tmp_path / "bad.json").write_text('{"queries": [{"clip": 1}]}')
    with pytest.raises(TaskError):
        read_task(tmp_path / "bad.json")
    with pytest.raises(TaskError):
        read_task(tmp_path / "none.json")
