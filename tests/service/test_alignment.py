from itertools import groupby

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.search.alignment import align, as_text, edit_similarity, texts


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
    found = align(np.array(query, np.uint16), [as_text(np.array(segment, np.uint16))])
    assert found == pytest.approx([textbook(query, segment)], abs=1e-6)


def test_nothing_is_near_nothing() -> None:
    some = np.array([1, 2], np.uint16)
    assert align(some, []).tolist() == []
    assert align(some[:0], [as_text(some)]).tolist() == [0.0]
    assert align(some, [as_text(some), ""]).tolist() == [1.0, 0.0]


def test_every_token_is_one_character_of_its_own() -> None:
    every = np.arange(2**16, dtype=np.uint16)
    assert [ord(c) for c in as_text(every)] == every.tolist()
    halves = np.array([0xD800, 0xDC00, 0xD800], np.uint16)  # which UTF-16 would read as one character and a half
    assert [ord(c) for c in as_text(halves)] == halves.tolist()
    assert align(halves, [as_text(halves[::-1]), as_text(halves[:2])]).tolist() == [1.0, 1.0]


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.data())
def test_texts_are_the_collapsed_tokens_of_regions(ids: list[int], data: st.DataObject) -> None:
    bounds = [sorted(data.draw(st.tuples(*[st.integers(0, len(ids))] * 2))) for _ in range(4)]
    low, high = (np.array([b[i] for b in bounds]) for i in (0, 1))
    found = texts(np.array(ids, np.uint16), low, high)
    assert [[ord(c) for c in text] for text in found] == [[k for k, _ in groupby(ids[a:b])] for a, b in bounds]


def test_edit_similarity_is_one_minus_the_normalised_distance() -> None:
    a = np.array([1, 2, 3, 4], np.uint16)
    assert edit_similarity(a, a) == 1.0
    assert edit_similarity(a, np.array([1, 9, 3], np.uint16)) == pytest.approx(0.5)
    assert edit_similarity(a, a[:0]) == 0.0
