"""Shards: what goes in comes out, also through a file; damage is noticed."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.codebook import Codebook
from model.tokens import TokenString
from service.search import shard
from service.search.shard import ShardError, StoredSegment
from tests.service.shards import FRAME_S, shard_of, unit

CODEBOOK = Codebook(unit(np.random.default_rng(0), 24, 8))
segments = st.lists(st.lists(st.integers(0, 23), max_size=30), max_size=6)


def textbook_postings(strings: list[TokenString]) -> dict[int, list[int]]:
    """The middle frame of each run, by token."""
    out: dict[int, list[int]] = {token: [] for token in range(CODEBOOK.size)}
    first = 0
    for string in strings:
        for token, begin, end in zip(string.ids, string.boundaries[:-1], string.boundaries[1:], strict=True):
            out[int(token)].append(first + int(begin) + int(end - begin) // 2)
        first += string.frames
    return out


@settings(deadline=None)
@given(segments)
def test_postings_are_the_middles_of_runs(some: list[list[int]]) -> None:
    made = shard_of([np.array(ids, np.uint16) for ids in some], CODEBOOK)
    expected = textbook_postings([TokenString.from_frames(np.array(ids, np.uint16), FRAME_S) for ids in some])
    for token in range(CODEBOOK.size):
        assert made.postings[made.lists[token] : made.lists[token + 1]].tolist() == expected[token]
    assert (made.frames, made.segments, made.codebook_size) == (sum(map(len, some)), len(some), CODEBOOK.size)
    assert not any(array.flags.writeable for array in made.arrays().values())


@settings(deadline=None, max_examples=20)
@given(segments, segments)
def test_merged_and_thinned_is_what_would_have_been_built(one: list[list[int]], other: list[list[int]]) -> None:
    first, second = (shard_of([np.array(ids, np.uint16) for ids in some], CODEBOOK) for some in (one, other))
    merged = shard.merge([first, second])
    assert merged.segments == first.segments + second.segments
    thinned = merged.kept(np.arange(merged.segments) >= first.segments)
    for name, array in thinned.arrays().items():
        np.testing.assert_array_equal(array, second.arrays()[name])


@pytest.mark.parametrize("parts", [0, 4])
def test_a_file_gives_the_same_shard(tmp_path: Path, parts: int) -> None:
    rng = np.random.default_rng(1)
    made = shard_of([rng.integers(0, 24, n) for n in (40, 0, 7)], CODEBOOK, [5, 5, 9], parts)
    shard.save(made, tmp_path / "a.shard")
    read = shard.load(tmp_path / "a.shard")
    for name, array in made.arrays().items():
        np.testing.assert_array_equal(read.arrays()[name], array)
        assert read.arrays()[name].dtype == array.dtype
    assert read.frame_seconds == FRAME_S
    assert [path.name for path in tmp_path.iterdir()] == ["a.shard"]
    string = read.tokens(42, 45, 2)
    assert (string.offset, string.frame_ids.tolist()) == (pytest.approx(20.0 + 2 * FRAME_S), made.ids[42:45].tolist())
    assert (string.pq is not None) == (parts > 0)


def test_frames_belong_to_segments_and_empty_ones_have_none() -> None:
    made = shard_of([np.array(ids, np.uint16) for ids in ([1, 2, 3], [], [4, 5])], CODEBOOK)
    assert made.segment_of(np.array([-3, 0, 2, 3, 4, 99])).tolist() == [0, 0, 0, 2, 2, 2]


def test_every_damaged_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.shard"
    shard.save(shard_of([np.arange(20, dtype=np.uint16)], CODEBOOK), path)
    good = path.read_bytes()
    rng = np.random.default_rng(2)
    arrays = len(good) - shard.load(path).postings.nbytes
    for at in [0, 5, 9, 13, 20, arrays + 3, len(good) - 1, *rng.integers(0, 16, 10).tolist()]:
        bad = bytearray(good)
        bad[at] ^= 0x55
        path.write_bytes(bad)
        with pytest.raises((ShardError, ValueError)):
            shard.load(path)
    for length in (0, 7, 40, len(good) - 1):
        path.write_bytes(good[:length])
        with pytest.raises(ShardError, match=r"bytes|damaged"):
            shard.load(path)
    path.write_bytes(good + b"x")
    with pytest.raises(ShardError, match="bytes"):
        shard.load(path)


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shard.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        shard.save(shard_of([np.arange(20, dtype=np.uint16)], CODEBOOK), tmp_path / "a.shard")
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_is_refused() -> None:
    tokens = TokenString.from_frames(np.array([1, 99]), FRAME_S)
    with pytest.raises(ValueError, match="a token 99 of a codebook of 24"):
        shard.build([StoredSegment(1, 1, 0, tokens)], 24, 0)
    with pytest.raises(ValueError, match="no codes of 4 bytes"):
        shard.build([StoredSegment(1, 1, 0, tokens)], 100, 4)
