import pytest

from service.evaluation.figures import figures, levels
from service.evaluation.tasks import Place, TaskQuery
from tests.service.evaluation.example import HITS, QUERY

OOV = TaskQuery("r.flac", Place("x"), frozenset({"x"}), (Place("b.opus", 0.0, 1.0),), True)
UNSAID = TaskQuery("s.flac", Place("x"), frozenset({"x"}), (), False)


def test_figures_have_their_groups() -> None:
    table = figures([QUERY, OOV], {"q.flac": HITS}, recordings=10, audio_s=100.0)
    assert set(table) == {f"{level}/{group}" for level in ("file", "located") for group in ("all", "iv", "oov")}
    assert table["file/all"].map == pytest.approx(table["file/iv"].map / 2)  # an unanswered query counts zero
    untimed = TaskQuery("r.flac", Place("x"), frozenset(), (Place("b.opus"),), False)
    assert set(figures([untimed], {}, 10, 100.0)) == {"file/all", "file/iv"}


def test_figures_by_hand() -> None:
    found = figures([QUERY], {"q.flac": HITS}, recordings=10, audio_s=100.0, threshold=0.7)
    by_file, located = found["file/all"], found["located/all"]
    # By file: .9 right, .8 wrong, .5 right, of two recordings.
    assert by_file.map == pytest.approx((1 + 2 / 3) / 2)
    assert (by_file.mrr, by_file.p10) == (1.0, pytest.approx(0.2))
    # At .7 half is found, with one false alarm of 10 - 2 trials at 12.49.
    assert (by_file.atwv, by_file.atwv_threshold) == (pytest.approx(1 / 2 - 12.49 / 8), 0.7)
    assert (by_file.mtwv, by_file.threshold) == (pytest.approx(1 / 2), 0.9)
    # Located: .9 and .5 right, .8 and .6 wrong, of three references; trials are seconds.
    assert located.map == pytest.approx((1 + 2 / 4) / 3)
    assert located.atwv == pytest.approx(1 / 3 - 999.9 / 97)
    # Bins of one hit each: |.9 - 1|, |.8 - 0|, |.6 - 0|, |.5 - 1|.
    assert located.ece == pytest.approx((0.1 + 0.8 + 0.6 + 0.5) / 4)


def test_beta_and_threshold_are_the_users() -> None:
    found = figures([QUERY], {"q.flac": HITS}, 10, 100.0, threshold=0.8, beta=1.0)
    assert {f.beta for f in found.values()} == {1.0}
    assert found["file/all"].atwv == pytest.approx(1 / 2 - 1 / 8)
    assert found["located/all"].atwv == pytest.approx(1 / 3 - 1 / 97)


def test_without_a_threshold_it_is_what_beta_implies() -> None:
    found = figures([QUERY], {"q.flac": HITS}, 10, 100.0, beta=1.0)
    expected = {"file": 0.9 + 0.8 + 0.5, "located": 0.9 + 0.8 + 0.6 + 0.5}  # the sum of scores, cost 1 to 1
    assert found["file/all"].atwv_threshold == pytest.approx(expected["file"] / 10)
    assert found["located/all"].atwv_threshold == pytest.approx(expected["located"] / 100)


def test_queries_of_which_nothing_is_to_be_found_count_for_calibration_alone() -> None:
    alone = figures([QUERY], {"q.flac": HITS}, 10, 100.0, threshold=0.7)["file/all"]
    both = figures([QUERY, UNSAID], {"q.flac": HITS, "s.flac": HITS}, 10, 100.0, threshold=0.7)["file/all"]
    assert (both.queries, both.map, both.mtwv, both.atwv) == (1, alone.map, alone.mtwv, alone.atwv)
    assert both.ece is not None
    assert alone.ece is not None
    assert both.ece > alone.ece
    assert figures([UNSAID], {}, 10, 100.0) == {}


def test_precision_at_ranks() -> None:
    level = levels([QUERY, UNSAID], {"q.flac": HITS}, 10, 100.0)["file"]
    assert level.precision(4) == pytest.approx([1, 1 / 2, 2 / 3, 2 / 4])
