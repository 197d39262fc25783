"""Byte-pair merges against the naive way, and the figures of token strings on small cases."""

import struct
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.accuracy.pairalign import Stretches, collapsed, distances
from bench.accuracy.rates import Point, draw
from bench.accuracy.writers import Merged, apart, learn_merges, merge, merge_one
from model.audio import SAMPLE_RATE
from model.codebook import Codebook
from model.tokenizer import Tokenizer

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
    book = Merged(centroids, switch_penalty=0.0, merges=((0, 1),))
    assert book.tokenize(centroids[[0, 0, 1, 2, 2, 0]]).tolist() == [3, 3, 3, 2, 2, 0]
    assert book.tokenize(centroids[:0]).tolist() == []


@given(st.lists(st.integers(0, 3), max_size=40))
def test_equal_symbols_in_a_row_are_told_apart(line: list[int]) -> None:
    line = [token for token, before in zip(line, [-1, *line], strict=False) if token != before]
    merges = ((0, 1), (4, 2), (1, 3))
    symbols, spans = apart(*merge(line, merges, 4), merges, 4)
    assert all(a != b for a, b in pairwise(symbols))
    assert sum(spans) == len(line)
    whole = {4: [0, 1], 5: [0, 1, 2], 6: [1, 3]}
    assert [token for symbol in symbols for token in whole.get(symbol, [symbol])] == line
    assert spans == [len(whole.get(symbol, [symbol])) for symbol in symbols]


def test_two_equal_symbols_by_hand() -> None:
    assert apart([4, 4, 2], [2, 2, 1], ((0, 1),), 4) == ([4, 0, 1, 2], [2, 1, 1, 1])


def test_stretches_are_compared_by_shift_with_their_place() -> None:
    tokenizer = Tokenizer(threads=1)
    rng = np.random.default_rng(0)
    level = 0.1 * np.abs(np.sin(np.arange(SAMPLE_RATE * 5) / 2_500))
    sounds = [(level * rng.standard_normal(len(level))).astype(np.float32) for _ in range(2)]
    stretches = Stretches(tokenizer, [*sounds, sounds[0][:SAMPLE_RATE]], 5)
    assert {len(rows) for rows in stretches.heard.values()} == {2}  # the third is too short to be shifted
    # A codebook of one token is never far from itself, and never has more than that token.
    same = stretches.figures(Codebook(tokenizer.codebook.centroids[:1], None))
    assert {value for name, value in same.items() if name.startswith("shift")} == {0.0}
    assert (same["3 s with one token"], same["3 s without an end"]) == (2, None)
    figures = stretches.figures(Codebook(tokenizer.codebook.centroids, None, 0.0))
    assert 0.0 < figures["shift 10 ms, edit distance"] <= 1.0
    a, b = (collapsed(tokenizer.codebook, stretches.heard[shift][0]) for shift in (0, 200))
    assert a.tolist() != b.tolist()


def test_a_curve_has_a_panel_for_each_task(tmp_path: Path) -> None:
    line = [Point("VQ, by price of a change", "0", 14.0, 0.2), Point("VQ, by price of a change", "0.1", 9.0, 0.1)]
    draw({"one": line}, tmp_path / "one.png")
    draw({"one": line, "two": [*line, Point("PairAlign, by rate", "p-r0", 8.0, 0.2)]}, tmp_path / "two.png")
    sizes = [struct.unpack(">II", (tmp_path / name).read_bytes()[16:24]) for name in ("one.png", "two.png")]
    assert sizes[1][0] == 2 * sizes[0][0]
    assert sizes[1][1] == sizes[0][1]


def test_distances_of_token_strings() -> None:
    a, b, c = (np.array(x, np.uint16) for x in ([1, 2, 3, 4], [1, 3, 4], [9]))
    edit, length = distances([(a, b), (a, c)])
    assert edit == pytest.approx((1 / 4 + 1) / 2)
    assert length == pytest.approx((1 / 4 + 3 / 4) / 2)


def test_collapsed_tokens() -> None:
    centroids = np.eye(3, dtype=np.float32)
    assert collapsed(Codebook(centroids, None, 0.0), centroids[[2, 2, 0, 0, 2]]).tolist() == [2, 0, 2]
