import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.segment import FRAME_SAMPLES, LONGEST_FRAMES, OVERLAP_FRAMES, Segment, Segmenter, find_pause, frame_levels
from model.tokenizer import Tokenizer
from tests.indexer.sounds import babble

RATE = 16_000


def cut(samples: np.ndarray, chunk: int = 7 * RATE, left: int = 0, right: int = 0) -> list[Segment]:
    chunks = [samples[i : i + chunk] for i in range(0, len(samples), chunk)]
    return list(Segmenter(left, right).segments(chunks))


def loud(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise without a pause."""
    return (0.1 * np.random.default_rng(seed).standard_normal(int(seconds * RATE))).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(
    seconds=st.floats(0.0, 130.0), pauses=st.lists(st.floats(0.0, 130.0), max_size=12), chunk=st.integers(500, 400_000)
)
def test_segments_cover_everything_and_lose_nothing(seconds: float, pauses: list[float], chunk: int) -> None:
    samples = loud(seconds)
    for pause in pauses:
        samples[int(pause * RATE) : int((pause + 0.4) * RATE)] *= 0.001
    segments = cut(samples, chunk, left=5_000, right=3_000)
    frames = len(samples) // FRAME_SAMPLES
    end = 0
    for segment in segments:
        assert 0 < segment.frames <= LONGEST_FRAMES
        assert end - segment.start_frame in (0, OVERLAP_FRAMES)
        first = segment.start_frame * FRAME_SAMPLES
        end = segment.start_frame + segment.frames
        last = end * FRAME_SAMPLES
        np.testing.assert_array_equal(segment.samples, samples[first:last])
        assert len(segment.before) == min(first, -(-5_000 // FRAME_SAMPLES) * FRAME_SAMPLES)
        np.testing.assert_array_equal(segment.before, samples[first - len(segment.before) : first])
        np.testing.assert_array_equal(segment.after, samples[last : last + 3_000])
    assert end == frames


def test_chunk_sizes_make_no_difference() -> None:
    samples = babble(65.0, seed=3)
    expected = [(s.start_frame, s.frames) for s in cut(samples, len(samples))]
    for chunk in (1_000, 160_000, 333_333):
        assert [(s.start_frame, s.frames) for s in cut(samples, chunk)] == expected


def test_a_pause_is_where_it_is_cut() -> None:
    samples = loud(30.0)
    samples[int(13.0 * RATE) : int(13.6 * RATE)] *= 0.001
    first, second = cut(samples)
    assert first.frames * 0.04 == pytest.approx(13.3, abs=0.1)
    assert second.start_frame == first.frames


def test_without_a_pause_neighbours_overlap_by_two_seconds() -> None:
    segments = cut(loud(45.0))
    assert [s.start_frame * 0.04 for s in segments] == [0.0, 18.0, 36.0]
    assert [s.frames * 0.04 for s in segments] == [20.0, 20.0, 9.0]


def test_no_cut_in_the_first_eight_seconds() -> None:
    samples = loud(25.0)
    samples[3 * RATE : 4 * RATE] = 0.0
    assert find_pause(frame_levels(samples[: 20 * RATE])) is None


def test_silence_is_not_speech_and_babble_mostly_is() -> None:
    (silence,) = cut(np.zeros(10 * RATE, np.float32))
    assert not silence.speech.any()
    (speech,) = cut(babble(10.0))
    assert 0.5 < speech.speech.mean() < 1.0


def test_less_than_a_frame_is_nothing() -> None:
    assert cut(loud(0.039)) == []
    assert [s.frames for s in cut(loud(0.041))] == [1]


def test_memory_does_not_grow_with_the_recording() -> None:
    chunk = loud(10.0)
    largest = 0
    segmenter = Segmenter(20_000, 20_000)
    for segment in segmenter.segments(chunk for _ in range(200)):
        for part in (segment.samples, segment.before, segment.after):
            largest = max(largest, 0 if part.base is None else part.base.nbytes)
    assert segmenter.total_samples == 200 * len(chunk)
    assert largest < 4 * 45 * RATE


def test_tokens_of_the_segments_are_those_of_one_pass(tokenizer_path) -> None:  # type: ignore[no-untyped-def]
    tokenizer = Tokenizer(tokenizer_path, threads=1)
    if tokenizer.info.context != "bounded":
        pytest.skip("only a bounded tokenizer promises this")
    samples = np.concatenate([babble(33.0, seed=1), loud(12.0), babble(14.777, seed=2)])
    whole = tokenizer.frame_ids(samples)
    own = tokenizer.codebook
    for segment in cut(samples, 100_000, tokenizer.info.left_context_samples, tokenizer.info.right_context_samples):
        ids = own.assign(tokenizer.embed(segment.samples, segment.before, segment.after))
        np.testing.assert_array_equal(ids, whole[segment.start_frame : segment.start_frame + segment.frames])


def test_what_is_left_may_go_on() -> None:
    samples = babble(50.0, seed=4)
    asked, silent = Segmenter(5_000, 3_000), Segmenter(5_000, 3_000)
    cut_asked, cut_silent = [], []
    for start in range(0, len(samples), 7_000):
        chunk = samples[start : start + 7_000]
        cut_asked += asked.take(chunk)
        cut_silent += silent.take(chunk)
        so_far = samples[: start + 7_000]
        tail = list(asked.rest())
        whole = list(Segmenter(5_000, 3_000).segments([so_far]))
        assert [(s.start_frame, s.frames) for s in cut_asked + tail] == [(s.start_frame, s.frames) for s in whole]
    assert [s.start_frame for s in cut_asked] == [s.start_frame for s in cut_silent]
    assert [s.start_frame for s in asked.rest()] == [s.start_frame for s in silent.rest()]
