"""Stretches planted in two recordings are found again, and nothing else is."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.training import mining
from model.training.data import Entry, Pack
from model.training.mining import best_diagonal, from_texts, read_texts

pytestmark = pytest.mark.training


def slow_best(similarity: np.ndarray, frames: int) -> tuple[float, int, int]:
    n, m = similarity.shape
    frames = min(frames, n, m)
    return max(
        (float(np.mean([similarity[i + k, j + k] for k in range(frames)], dtype=np.float64)), -i, -j)
        for i in range(n - frames + 1)
        for j in range(m - frames + 1)
    )


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_best_diagonal_agrees_with_trying_all(n: int, m: int, frames: int, seed: int) -> None:
    similarity = np.random.default_rng(seed).uniform(-1, 1, (n, m)).astype(np.float32)
    mean, row, column = best_diagonal(similarity, frames)
    expected, i, j = slow_best(similarity, frames)
    assert mean == pytest.approx(expected, abs=1e-6)
    assert (row, column) == (-i, -j)


def test_a_diagonal_that_leaves_the_matrix_hides_no_whole_one() -> None:
    similarity = np.zeros((30, 30), np.float32)
    for k in range(9):  # nine of ten frames alike, but the tenth lies outside
        similarity[21 + k, k] = 1.0
    similarity[5:15, 12:22][np.eye(10, dtype=bool)] = 0.3
    similarity[20, :] = -1.0
    assert best_diagonal(similarity, 10) == pytest.approx((0.3, 5, 12))


def unit(rng: np.random.Generator, frames: int, dim: int = 24) -> np.ndarray:
    x = rng.standard_normal((frames, dim)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def corpus(lengths: list[int], speakers: list[str] | None = None, languages: list[str] | None = None) -> Pack:
    speakers = speakers or [f"s{i}" for i in range(len(lengths))]
    languages = languages or ["fy"] * len(lengths)
    entries = [Entry(f"{i}.wav", languages[i], speakers[i], "speech") for i in range(len(lengths))]
    frames = np.array(lengths, np.int64)
    rng = np.random.default_rng(9)
    samples = (rng.standard_normal(int(frames.sum()) * 640) * 3_000).astype(np.int16)
    return Pack(samples, np.concatenate([[0], np.cumsum(frames)[:-1]]), frames, entries)


TEXTS = {0: "sy seach wetterstrjitte nei it hûs", 1: "oan de wetterstrjitte by de see", 2: "moarn komt er werom"}
WORD_FRAMES = round(len("wetterstrjitte") * mining.LETTER_FRAMES)


def planted(at: tuple[int, int]) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    embeddings = [unit(rng, 90), unit(rng, 80), unit(rng, 70)]
    said = unit(rng, WORD_FRAMES)
    for recording, first in enumerate(at):
        heard = said + 0.1 * unit(rng, WORD_FRAMES)
        embeddings[recording][first : first + WORD_FRAMES] = heard / np.linalg.norm(heard, axis=1, keepdims=True)
    return embeddings


def test_a_word_of_two_texts_is_found_where_the_sound_is_alike() -> None:
    embeddings = planted((31, 25))
    found = from_texts(corpus([90, 80, 70]), TEXTS, embeddings.__getitem__)
    assert {(w.recording, w.first, w.frames, w.label, w.speaker) for w in found} == {
        (0, 31, WORD_FRAMES, "fy/wetterstrjitte", "s0"),
        (1, 25, WORD_FRAMES, "fy/wetterstrjitte", "s1"),
    }


def test_what_must_not_be_paired_is_not() -> None:
    embeddings = planted((31, 25))
    lengths = [90, 80, 70]

    def find(pack: Pack, **changes: object) -> list[object]:
        return list(from_texts(pack, TEXTS, embeddings.__getitem__, **changes))  # type: ignore[arg-type]

    assert find(corpus(lengths))
    assert find(corpus(lengths), excluded=frozenset({"wetterstrjitte"})) == []
    assert find(corpus(lengths, speakers=["s0", "s0", "s1"])) == []
    assert find(corpus(lengths, languages=["fy", "nl", "fy"])) == []
    assert find(corpus(lengths), min_similarity=0.999) == []
    assert find(corpus(lengths), min_letters=15) == []


def test_a_likeness_far_from_where_the_text_has_the_word_is_no_find() -> None:
    far = planted((64, 25))  # the text has it before the middle
    assert from_texts(corpus([90, 80, 70]), TEXTS, far.__getitem__) == []
    assert from_texts(corpus([90, 80, 70]), TEXTS, far.__getitem__, position=0.6)


def test_texts_are_read_by_recording(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.tsv"
    manifest.write_text(
        "path\tcorpus\tlanguage\tspeaker\tsplit\ttext\tseconds\n"
        '1.wav\tc\tfy\ts\ttrain\tit "hûs\t2.0\n0.wav\tc\tfy\ts\ttrain\t\t2.0\n9.wav\tc\tfy\ts\ttrain\tfier\t2.0\n',
        encoding="utf-8",
    )
    assert read_texts(manifest, corpus([10, 10])) == {1: 'it "hûs'}


def test_by_sound_finds_what_was_planted_without_any_text() -> None:
    rng = np.random.default_rng(4)
    embeddings = [unit(rng, n) for n in (120, 90, 100, 10)]
    said = unit(rng, 20)
    embeddings[0][70:90], embeddings[2][31:51] = said, said
    pack = corpus([120, 90, 100, 10, 50])
    recordings = np.array([0, 1, 2, 3])
    found = mining.by_sound(pack, recordings, embeddings, queries=10_000)
    assert found
    assert {word.recording for word in found} == {0, 2}
    for a, b in zip(found[::2], found[1::2], strict=True):
        assert a.label == b.label
        assert {a.recording, b.recording} == {0, 2}
        assert a.speaker != b.speaker
        first = {word.recording: word.first for word in (a, b)}
        assert first[0] - 70 == first[2] - 31
        assert a.frames == b.frames == mining.QUERY_FRAMES
    assert mining.by_sound(pack, recordings, embeddings, queries=10_000, min_similarity=1.01) == []


def test_by_sound_passes_over_pauses() -> None:
    rng = np.random.default_rng(4)
    embeddings = [unit(rng, 100), unit(rng, 100)]
    embeddings[1][20:60] = embeddings[0][20:60]
    pack = corpus([100, 100])
    assert mining.by_sound(pack, np.array([0, 1]), embeddings, queries=1_000)
    quiet = pack.samples.copy()
    for recording in (0, 1):
        first = (recording * 100 + 20) * 640
        quiet[first : first + 40 * 640] //= 100
    pack = Pack(quiet, pack.start, pack.frames, pack.entries)
    assert mining.by_sound(pack, np.array([0, 1]), embeddings, queries=1_000, min_similarity=0.9) == []
