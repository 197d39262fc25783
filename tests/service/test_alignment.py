import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.search.alignment import align, edit_similarity


def common_subsequence(a: list[int], b: list[int]) -> int:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def slide(short: list[int], long: list[int]) -> float:
    """Best similarity over all windows of the longer as long as the shorter, and the shorter ones at both ends."""
    windows = {(max(0, s), min(len(long), s + len(short))) for s in range(1 - len(short), len(long))}
    return max(2 * common_subsequence(short, long[a:b]) / (len(short) + b - a) for a, b in windows)


def textbook(query: list[int], segment: list[int]) -> float:
    if len(query) == len(segment):
        return max(slide(query, segment), slide(segment, query))
    return slide(*sorted((query, segment), key=len))


tokens = st.lists(st.integers(0, 6), min_size=1, max_size=24)


@given(tokens, tokens)
def test_agrees_with_the_textbook(query: list[int], segment: list[int]) -> None:
    found = align(np.array(query, np.uint16), [np.array(segment, np.uint16)])[0]
    assert found.similarity == pytest.approx(textbook(query, segment), abs=1e-9)
    assert 0 <= found.start <= found.end <= len(segment)


def test_finds_where_the_query_lies() -> None:
    rng = np.random.default_rng(0)
    segment = rng.integers(100, 4_000, 60).astype(np.uint16)
    segment[20:27] = [1, 2, 3, 4, 5, 6, 7]
    found = align(np.array([1, 2, 3, 9, 5, 6, 7], np.uint16), [segment, segment[:0]])
    assert (found[0].start, found[0].end) == (20, 27)
    assert found[0].similarity == pytest.approx(6 / 7)
    assert found[1].similarity == 0.0


def test_edit_similarity_is_one_minus_the_normalised_distance() -> None:
    a = np.array([1, 2, 3, 4], np.uint16)
    assert edit_similarity(a, a) == 1.0
    assert edit_similarity(a, np.array([1, 9, 3], np.uint16)) == pytest.approx(0.5)
    assert edit_similarity(a, a[:0]) == 0.0
