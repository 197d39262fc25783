"""Candidates: votes agree with the textbook's, and what was planted is found, at every place and speed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.codebook import Codebook
from model.tokens import TokenString
from service.search import candidates, rescoring
from service.search.candidates import Votes, best, depth_for, everything, find, make_votes, neighbours
from service.search.localindex import Part, View
from service.search.stretches import rescore
from tests.service.shards import FRAME_S, shard_of, unit, view_of

CODEBOOK = Codebook(unit(np.random.default_rng(0), 64, 16))


def alive(view: View) -> list[np.ndarray]:
    return [part.alive for part in view.parts]


def asked(ids: list[int] | np.ndarray, count: int = 8) -> tuple[Votes, rescoring.Tables]:
    """A query whose frames lie on centroids."""
    tokens = TokenString.from_frames(np.asarray(ids, np.uint16), FRAME_S)
    tables = rescoring.make_tables(CODEBOOK.centroids[tokens.frame_ids], CODEBOOK)
    return make_votes(tokens, tables, count), tables


def textbook(votes: Votes, ids: np.ndarray, first: np.ndarray) -> dict[int, int]:
    """Votes by bin: each run of each code, where the query's middle would lie."""
    out: dict[int, int] = {}
    frame = 0
    bounds = set(first.tolist())
    while frame < len(ids):
        end = frame + 1
        while end < len(ids) and ids[end] == ids[frame] and end not in bounds:
            end += 1
        for code, weight, shift in zip(votes.codes, votes.weights, votes.shifts, strict=True):
            if code == ids[frame]:
                at = (frame + (end - frame) // 2 + int(shift) + votes.margin) >> votes.log2
                out[at] = out.get(at, 0) + int(weight)
        frame = end
    return out


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(3, 40), st.lists(st.integers(1, 300), min_size=1, max_size=4))
def test_agrees_with_the_textbook(seed: int, length: int, lengths: list[int]) -> None:
    rng = np.random.default_rng(seed)
    made = shard_of([rng.integers(0, 64, n).repeat(2)[:n] for n in lengths], CODEBOOK)
    votes, _ = asked(rng.integers(0, 64, length))
    expected = textbook(votes, made.ids, made.first)
    found = find(votes, view_of(made), alive(view_of(made)), 10**6)
    pairs = {b: expected.get(b, 0) + expected.get(b + 1, 0) for b in range(-1, max(expected, default=0) + 2)}
    peaks = {
        b: value for b, value in pairs.items()
        if b >= 0 and value > max(0, pairs.get(b - 1, 0)) and value >= pairs.get(b + 1, 0)
    }  # fmt: skip
    middles = {((b + 1) << votes.log2) - votes.margin: value for b, value in peaks.items()}
    reach = candidates.slack(votes.frames) + (1 << votes.log2)
    expected_windows = set()
    for middle, value in middles.items():
        segment = int(np.clip(np.searchsorted(made.first, middle, "right") - 1, 0, made.segments - 1))
        low, high = max(middle - reach, made.first[segment]), min(middle + reach, made.first[segment + 1])
        if high > low:
            expected_windows.add((segment, int(low), int(high), value))
    assert set(zip(*(a.tolist() for a in (found.segment, found.low, found.high, found.votes)), strict=True)) == (
        expected_windows
    )


@pytest.mark.parametrize("speed", [0.75, 1.0, 1.3])
@pytest.mark.parametrize("at", [0, 1, 130, 400, 484])
def test_what_is_said_once_more_comes_first(speed: float, at: int) -> None:
    rng = np.random.default_rng(at)
    word = rng.integers(0, 32, 16)
    said = word[np.minimum(np.arange(round(16 / speed)) * speed, 15).astype(int)]
    frames = rng.integers(32, 64, 500)
    frames[at : at + len(said)] = said[: 500 - at]
    made = shard_of([rng.integers(32, 64, 300), frames, rng.integers(32, 64, 90)], CODEBOOK)
    votes, tables = asked(word)
    first = best(find(votes, view_of(made), alive(view_of(made)), 50), 1)
    assert first.segment.tolist() == [1]
    place = rescore(tables, view_of(made), first)
    overlap = min(int(place.end[0]) - 300, at + len(said)) - max(int(place.start[0]) - 300, at)
    assert overlap > 0.7 * min(len(said), 500 - at)


def test_neighbours_of_a_token_vote_for_it_and_what_is_nearer_counts_more() -> None:
    votes, _ = asked([5] * 4, count=6)
    similarity = CODEBOOK.centroids @ CODEBOOK.centroids[5] - CODEBOOK.crowding
    order = np.argsort(-similarity)
    assert set(votes.codes.tolist()) <= set(order[:6].tolist())
    weights = dict(zip(votes.codes.tolist(), votes.weights.tolist(), strict=True))
    ranked = [weights.get(int(code), 0) for code in order[:6]]
    assert ranked == sorted(ranked, reverse=True)
    assert ranked[0] > 2 * ranked[1]  # itself


def test_the_depth_keeps_the_most_votes_whatever_the_shards() -> None:
    rng = np.random.default_rng(3)
    shards = [shard_of([rng.integers(0, 64, 400) for _ in range(5)], CODEBOOK) for _ in range(4)]
    votes, _ = asked(rng.integers(0, 64, 12))
    view = view_of(*shards)
    everywhere = find(votes, view, alive(view), 10**6)
    for depth in (1, 7, 60):
        found = find(votes, view, alive(view), depth)
        assert len(found) == depth
        assert sorted(found.votes.tolist()) == sorted(everywhere.votes.tolist())[-depth:]


def test_segments_that_are_not_alive_are_not_looked_at() -> None:
    rng = np.random.default_rng(4)
    word = rng.integers(0, 64, 12)
    said = np.concatenate([rng.integers(0, 64, 24), word, rng.integers(0, 64, 24)])
    made = shard_of([said, said, said], CODEBOOK)
    view = View(1, (Part(made, np.array([True, False, True])),))
    votes, _ = asked(word)
    assert set(find(votes, view, alive(view), 100).segment.tolist()) == {0, 2}
    whole = everything(view, alive(view))
    assert (whole.segment.tolist(), whole.low.tolist(), whole.high.tolist()) == ([0, 2], [0, 120], [60, 180])
    assert len(find(votes, View(1, ()), [], 5)) == 0


def test_no_count_can_overflow() -> None:
    """The same token over and over, against a query of nothing else: every vote falls on few bins."""
    for frames in (3, 30, 300):
        ids = np.tile([7, 8], 1_000)
        votes, _ = asked(np.tile([7, 8], -(-frames // 2))[:frames], count=40)
        made = shard_of([ids], CODEBOOK)
        expected = textbook(votes, made.ids, made.first)
        assert candidates.HEAVIEST / 100 < max(expected.values()) < 2**31
        assert find(votes, view_of(made), alive(view_of(made)), 10**6).votes.max() <= 2 * max(expected.values())


def test_larger_archives_and_longer_queries_get_less() -> None:
    view = view_of(shard_of([np.arange(64).repeat(50)], CODEBOOK))
    assert neighbours(view, 10, 64) == 63
    assert neighbours(view, 10, 8_192) == candidates.MOST_NEIGHBOURS
    assert depth_for(20, 2_000) == 2_000
    assert depth_for(750, 2_000) == candidates.LEAST_DEPTH
    assert depth_for(750, 30) == 30
    assert 100 < depth_for(200, 2_000) < 2_000


def test_queries_of_one_token_and_of_a_codebook_of_two() -> None:
    small = Codebook(unit(np.random.default_rng(1), 2, 4))
    made = shard_of([np.array([0, 1, 1, 0])], small)
    tokens = TokenString.from_frames(np.array([1, 1, 1], np.uint16), FRAME_S)
    votes = make_votes(tokens, rescoring.make_tables(small.centroids[[1, 1, 1]], small), 64)
    assert votes.codes.tolist() == [1]
    assert len(find(votes, view_of(made), alive(view_of(made)), 10)) == 1
