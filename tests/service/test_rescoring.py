import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.codebook import Codebook, fit_codebook
from model.tokens import TokenString
from service.search.rescoring import gather, make_tables, match, match_regions


def unit(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    x = rng.standard_normal((rows, dim)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def textbook(similarity: np.ndarray) -> np.ndarray:
    """Best mean over all paths that end at each frame, and where it starts: [ends, (mean, start)]."""
    rows, columns = similarity.shape
    total = np.full((rows, columns), -np.inf)
    start = np.zeros((rows, columns), int)
    total[0], start[0] = similarity[0], np.arange(columns)
    for i in range(1, rows):
        for j in range(columns):
            options = [(total[i - 1, j - step], j - step) for step in (0, 1, 2) if j - step >= 0]
            best = max(value for value, _ in options)
            total[i, j] = best + similarity[i, j]
            start[i, j] = next(start[i - 1, k] for value, k in options if value == best)
    return np.stack([total[-1] / rows, start[-1]], axis=1)


def crowded(codebook: Codebook, string: TokenString, further: bool) -> np.ndarray:
    """How crowded it is about what a frame's tokens stand for, on average: [frames]."""
    about = [codebook.crowding[string.frame_ids]]
    if further and string.pq is not None:
        tokens = string.pq.view("<u2")
        about += [other.crowding[tokens[:, number]] for number, other in enumerate(codebook.others)]
    return np.asarray(np.mean(about, axis=0))


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10**6), st.integers(1, 12), st.lists(st.integers(0, 40), min_size=1, max_size=4), st.booleans(),
    st.booleans(),
)  # fmt: skip
def test_agrees_with_the_textbook(seed: int, frames: int, lengths: list[int], residual: bool, further: bool) -> None:
    rng = np.random.default_rng(seed)
    if further:
        codebook = Codebook(unit(rng, 20, 8), further=np.stack([unit(rng, 20, 8) for _ in range(3)]))
    else:
        codebook = Codebook(unit(rng, 20, 8), (0.2 * rng.standard_normal((2, 16, 4))).astype(np.float32))
    strings = []
    for length in lengths:
        ids = rng.integers(0, 20, length)
        codes = (
            rng.integers(0, 20, (length, 3)).astype("<u2").view(np.uint8)
            if further
            else rng.integers(0, 16, (length, 2)).astype(np.uint8)
        )
        strings.append(TokenString.from_frames(ids, 0.04, 0.0, codes))
    query = unit(rng, frames, 8)
    tables = make_tables(query, codebook, residual)
    parts = codebook.parts if residual else 0
    found = match(tables, gather(strings, parts))
    for number, string in enumerate(strings):
        ours = np.flatnonzero(found.region == number)
        if string.frames == 0:
            assert len(ours) == 0
            continue
        vectors = codebook.decode(string.frame_ids, string.pq if residual else None)
        ends = textbook(query @ vectors.T - crowded(codebook, string, further and residual))
        best = int(ends[:, 0].argmax())
        assert found.similarity[ours[0]] == pytest.approx(ends[best, 0], abs=1e-4)
        # Each hit has the value of the best path that ends where it ends, and hits do not overlap.
        first = sum(lengths[:number])
        hits = [(int(found.start[m]) - first, int(found.end[m]) - first) for m in ours]
        for m, (start, end) in zip(ours, hits, strict=True):
            assert found.similarity[m] == pytest.approx(ends[end - 1, 0], abs=1e-4)
            assert 0 <= start < end <= string.frames
        for one, other in itertools.combinations(hits, 2):
            assert one[1] <= other[0] or other[1] <= one[0]
        # With one hit alone it is the same best.
        (alone,) = np.flatnonzero(match(tables, gather([string], parts), 1).region == 0)
        assert match(tables, gather([string], parts), 1).similarity[alone] == pytest.approx(ends[best, 0], abs=1e-4)


def test_finds_the_same_frames_where_they_are_said_twice() -> None:
    rng = np.random.default_rng(1)
    word, filler = unit(rng, 12, 16), unit(rng, 80, 16)
    sound = np.concatenate([filler[:30], word, filler[30:50], np.repeat(word, 2, axis=0)[:23], filler[50:]])
    codebook = fit_codebook(sound, 64, parts=4, iterations=4)
    ids = codebook.assign(sound)
    string = TokenString.from_frames(ids, 0.04, 0.0, codebook.encode(sound, ids))
    tables = make_tables(word, codebook)
    found = match(tables, gather([string], 4))
    places = sorted(zip(found.start[:2].tolist(), found.end[:2].tolist(), strict=True))
    assert places[0] == (30, 42)
    # The second is said at half the speed.
    assert abs(places[1][0] - 62) <= 1
    assert abs(places[1][1] - 85) <= 1


def test_a_segment_of_no_frames_has_no_match() -> None:
    rng = np.random.default_rng(2)
    codebook = Codebook(unit(rng, 4, 8))
    empty = TokenString.from_frames(np.zeros(0, int), 0.04)
    tables = make_tables(unit(rng, 3, 8), codebook)
    assert len(match(tables, gather([empty], 0))) == 0
    assert len(match(tables, gather([], 0))) == 0


def test_codes_of_another_width_are_refused() -> None:
    string = TokenString.from_frames(np.array([1, 2]), 0.04)
    with pytest.raises(ValueError, match="no codes of 4 bytes"):
        gather([string], 4)


def test_what_is_near_everything_is_no_find() -> None:
    """Two places as near the query: one's centroid has many about it, and comes second."""
    rng = np.random.default_rng(3)
    axes = np.eye(16, dtype=np.float32)
    query, alone, crowded = axes[0], (axes[0] + axes[1]) / np.sqrt(2), (axes[0] + axes[2]) / np.sqrt(2)
    crowd = crowded + 0.05 * np.concatenate([np.zeros((20, 3)), rng.standard_normal((20, 13))], axis=1)
    crowd /= np.linalg.norm(crowd, axis=1, keepdims=True)
    codebook = Codebook(np.concatenate([alone[None], crowded[None], crowd, axes[3:]]).astype(np.float32))
    tables = make_tables(query[None], codebook)
    assert tables.token[0, 0] == pytest.approx(tables.token[0, 1])
    found = match(tables, gather([TokenString.from_frames(np.array([1, 0]), 0.04)], 0))
    assert (found.start[0], found.end[0]) == (1, 2)
    assert found.similarity[0] > found.similarity[1] + 0.1


def test_ties_are_kept_in_order() -> None:
    codebook = Codebook(np.eye(2, 4, dtype=np.float32))
    string = TokenString.from_frames(np.array([0, 1, 1, 0]), 0.04)
    tables = make_tables(np.eye(1, 4, dtype=np.float32), codebook)
    found = match(tables, gather([string], 0), per_segment=2)
    assert found.similarity.tolist() == [1.0, 1.0]
    assert set(zip(found.start.tolist(), found.end.tolist(), strict=True)) == {(0, 1), (3, 4)}


def test_regions_may_overlap_and_lie_anywhere() -> None:
    rng = np.random.default_rng(5)
    codebook = Codebook(unit(rng, 12, 8))
    ids, query = rng.integers(0, 12, 60).astype(np.uint16), unit(rng, 5, 8)
    tables = make_tables(query, codebook)
    low, high = np.array([10, 0, 15, 30]), np.array([25, 60, 30, 30])
    found = match_regions(tables, ids, np.zeros((60, 0), np.uint8), low, high)
    assert found.region.tolist() == [0, 1, 2]
    for region, similarity, end in zip(found.region, found.similarity, found.end, strict=True):
        there = ids[low[region] : high[region]]
        ends = textbook(query @ codebook.centroids[there].T - codebook.crowding[there])
        assert similarity == pytest.approx(ends[:, 0].max(), abs=1e-5)
        assert end == low[region] + ends[:, 0].argmax() + 1
