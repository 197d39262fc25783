from hypothesis import given
from hypothesis import strategies as st

from service.evaluation.judging import Judged, Ranked, judge, verdicts
from service.evaluation.tasks import Place, TaskQuery
from tests.service.evaluation.example import HITS, QUERY


def test_by_file_a_recording_counts_once() -> None:
    assert verdicts(QUERY, HITS, located=False) == [None, True, False, None, None, True]
    assert judge(QUERY, HITS, located=False) == Judged(((0.9, True), (0.8, False), (0.5, True)), 2)


def test_located_a_reference_counts_once_and_needs_its_time() -> None:
    assert verdicts(QUERY, HITS, located=True) == [None, True, False, None, False, True]
    assert judge(QUERY, HITS, located=True) == Judged(((0.9, True), (0.8, False), (0.6, False), (0.5, True)), 3)


def test_the_nearest_reference_is_found_and_then_the_other() -> None:
    # "very very": midpoints 1.2 and 1.6. Both hits are within half a second of both words.
    twice = TaskQuery("q", Place("x"), frozenset(), (Place("a", 1.0, 1.4), Place("a", 1.4, 1.8)), False)
    hits = [Ranked("a", 1.4, 1.8, 0.9), Ranked("a", 1.0, 1.4, 0.8), Ranked("a", 1.2, 1.6, 0.7)]
    assert verdicts(twice, hits, located=True) == [True, True, None]
    # Though nearer to the word that is taken, the second hit is at the other too.
    assert verdicts(twice, [hits[0], hits[0]], located=True) == [True, True]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 5), st.floats(0, 1)), max_size=20), st.booleans())
def test_no_more_is_right_than_was_to_be_found(drawn: list[tuple[str, float, float]], located: bool) -> None:
    query = TaskQuery("q", Place("x"), frozenset({"x"}), (Place("a", 1, 2), Place("a", 3, 4), Place("b", 1, 2)), False)
    hits = [Ranked(name, at, at + 0.5, score) for name, at, score in sorted(drawn, key=lambda d: -d[2])]
    judged = judge(query, hits, located)
    assert sum(right for _, right in judged.hits) <= judged.relevant
