import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.tokens import MAX_DURATION, TokenString, TokenStringError


def textbook_collapse(ids: list[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for token in ids:
        if runs and runs[-1][0] == token and runs[-1][1] < MAX_DURATION:
            runs[-1] = (token, runs[-1][1] + 1)
        else:
            runs.append((token, 1))
    return runs


frames = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 600)), max_size=12).map(
    lambda runs: [token for token, length in runs for _ in range(length)]
)


@given(frames, st.integers(0, 9), st.floats(0, 1e6))
def test_collapse_agrees_with_the_textbook_and_survives_the_round_trip(
    ids: list[int], width: int, offset: float
) -> None:
    codes = np.random.default_rng(0).integers(0, 256, (len(ids), width)).astype(np.uint8) if width else None
    string = TokenString.from_frames(np.array(ids, np.int64), 0.04, offset, codes)
    assert list(zip(string.ids.tolist(), string.durations.tolist(), strict=True)) == textbook_collapse(ids)
    assert string.frames == len(ids)
    assert string.frame_ids.tolist() == ids
    back = TokenString.from_bytes(string.to_bytes())
    assert back == string
    assert back.offset == offset
    assert (back.pq is None) == (width == 0)
    if codes is not None and back.pq is not None:
        assert (back.pq == codes).all()


def test_boundaries_and_duration() -> None:
    string = TokenString.from_frames(np.array([7, 7, 7, 2, 9, 9]), 0.04, 1.0)
    assert string.boundaries.tolist() == [0, 3, 4, 6]
    assert string.duration == pytest.approx(0.24)


GOOD = TokenString.from_frames(np.array([1, 1, 2]), 0.04, 0.5, np.zeros((3, 8), np.uint8)).to_bytes()


@pytest.mark.parametrize(
    ("blob", "says"),
    [
        (b"", "0 bytes are fewer"),
        (GOOD[:20], "20 bytes are fewer"),
        (b"XXXX" + GOOD[4:], "b'XXXX'"),
        (GOOD[:4] + b"\x09" + GOOD[5:], "version 9"),
        (GOOD[:-1], f"{len(GOOD) - 1} bytes, where the header asks for {len(GOOD)}"),
        (GOOD + b"\x00", f"{len(GOOD) + 1} bytes"),
    ],
)
def test_bad_bytes_say_what_was_found(blob: bytes, says: str) -> None:
    with pytest.raises(TokenStringError, match=says):
        TokenString.from_bytes(blob)


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(blob: bytes) -> None:
    with contextlib.suppress(TokenStringError):
        TokenString.from_bytes(GOOD[:4] + blob)


def test_lengths_that_disagree_are_refused() -> None:
    with pytest.raises(TokenStringError):
        TokenString(np.zeros(2, np.uint16), np.zeros(3, np.uint8), 0.04, 0.0)
    with pytest.raises(TokenStringError):
        TokenString(np.zeros(1, np.uint16), np.ones(1, np.uint8), 0.04, 0.0, np.zeros((2, 8), np.uint8))


def test_a_part_is_what_its_frames_collapse_to() -> None:
    frames = np.array([3, 3, 3, 1, 1, 7, 7, 7], np.uint16)
    pq = np.arange(64, dtype=np.uint8).reshape(8, 8)
    whole = TokenString.from_frames(frames, 0.04, 2.0, pq)
    part = whole.part(2, 6)
    assert part.frame_ids.tolist() == [3, 1, 1, 7]
    assert part.ids.tolist() == [3, 1, 7]
    assert part.offset == pytest.approx(2.08)
    assert part.pq is not None
    assert (part.pq == pq[2:6]).all()
    assert whole.part(6, 99).frames == 2
    assert TokenString.from_frames(frames, 0.04).part(0, 3).pq is None
