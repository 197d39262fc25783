"""Byte-pair merges against the naive way, and the figures of token strings on small cases."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.accuracy.pairalign import collapsed, distances
from bench.accuracy.writers import Merged, learn_merges, merge, merge_one
from model.codebook import Codebook

LINES = st.lists(st.lists(st.integers(0, 3), max_size=12), max_size=5)


def naive(strings: list[list[int]], count: int, size: int) -> tuple[tuple[int, int], ...]:
    lines, merges = [list(line) for line in strings], []
    for number in range(count):
        counts = Counter(pair for line in lines for pair in pairwise(line))
        most = max(counts.values(), default=0)
        if most < 2:
            break
        best = min(pair for pair, n in counts.items() if n == most)
        merges.append(best)
        lines = [merge_one(line, best, size + number) for line in lines]
    return tuple(merges)


@given(LINES, st.integers(0, 6))
def test_merges_are_those_of_the_naive_way(lines: list[list[int]], count: int) -> None:
    assert learn_merges(lines, count, 4) == naive(lines, count, 4)


@given(LINES, st.lists(st.integers(0, 3), max_size=20))
def test_merging_in_their_order_is_what_learning_did(lines: list[list[int]], line: list[int]) -> None:
    merges = learn_merges(lines, 5, 4)
    expected = list(line)
    for number, pair in enumerate(merges):
        expected = merge_one(expected, pair, 4 + number)
    symbols, spans = merge(line, merges, 4)
    assert symbols == expected
    assert sum(spans) == len(line)


def test_by_hand() -> None:
    assert learn_merges([[0, 1, 0, 1, 2], [0, 1, 2]], 2, 3) == ((0, 1), (3, 2))
    assert merge([0, 1, 2, 0, 1], ((0, 1), (3, 2)), 3) == ([4, 3], [3, 2])


def test_merged_tokens_hold_their_frames() -> None:
    centroids = np.eye(3, dtype=np.float32)
    book = Merged(centroids, None, 0.0, ((0, 1),))
    assert book.tokenize(centroids[[0, 0, 1, 2, 2, 0]]).tolist() == [3, 3, 3, 2, 2, 0]
    assert book.tokenize(centroids[:0]).tolist() == []


def test_distances_of_token_strings() -> None:
    a, b, c = (np.array(x, np.uint16) for x in ([1, 2, 3, 4], [1, 3, 4], [9]))
    edit, length = distances([(a, b), (a, c)])
    assert edit == pytest.approx((1 / 4 + 1) / 2)
    assert length == pytest.approx((1 / 4 + 3 / 4) / 2)


def test_collapsed_tokens() -> None:
    centroids = np.eye(3, dtype=np.float32)
    assert collapsed(Codebook(centroids, None, 0.0), centroids[[2, 2, 0, 0, 2]]).tolist() == [2, 0, 2]
