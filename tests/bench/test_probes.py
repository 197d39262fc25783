"""Probes: their kernels against the textbook, and all of it on a small task whose answers are known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from bench.accuracy import archive, embedders, matchers, probes
from bench.accuracy import tokens as tokens_
from bench.accuracy.archive import Recordings
from bench.accuracy.matchers import Found
from bench.accuracy.tokens import Tokens
from model.audio import read
from model.codebook import Codebook
from model.encoder import FRAME_SAMPLES, FRAME_SECONDS
from model.tokenizer import Tokenizer
from service.evaluation import judging, twv
from service.evaluation.errors import TaskError
from service.evaluation.judging import Ranked
from service.evaluation.tasks import Place, TaskQuery
from service.search import rescoring
from tests.indexer import sounds

DIM = 20  # no whole number of the quantiser's parts: the probes must make it one
_PROJECTION = np.random.default_rng(99).standard_normal((FRAME_SAMPLES, DIM)).astype(np.float32)
_WORD_FRAMES = 6


def test_what_is_heard_twice_has_its_frames_in_turn() -> None:
    ramp = np.arange(10 * FRAME_SAMPLES + 5, dtype=np.float32)
    once = embedders.Embedder(
        "first", FRAME_SECONDS, lambda s: s[: len(s) // FRAME_SAMPLES * FRAME_SAMPLES : FRAME_SAMPLES, None]
    )
    twice = embedders.twice(once)
    assert twice.frame_seconds == FRAME_SECONDS / 2
    (rows,) = twice([ramp])
    assert rows[:, 0].tolist() == [half * FRAME_SAMPLES / 2 for half in range(19)]


def embed(waveforms: list[np.ndarray]) -> list[np.ndarray]:
    """The direction of each frame's samples: what sounds the same at any level is the same."""
    out = []
    for wave in waveforms:
        blocks = wave[: len(wave) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES) @ _PROJECTION
        out.append(blocks / (np.linalg.norm(blocks, axis=1, keepdims=True) + 1e-9))
    return out


def unit(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    x = rng.standard_normal((rows, dim)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def offsets_of(lengths: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


@dataclass(frozen=True)
class Task:
    """Where the made task lies."""

    file: Path
    archive: Path
    noise: Path


@pytest.fixture
def task(tmp_path: Path) -> Task:
    """Three words, each said in three recordings, and a fourth that a recording says that is not among its references.

    A reference of the fourth has only its first half, so that it comes second: precision 1/2.
    """

    def sound(seed: int, frames: int) -> np.ndarray:
        return 0.1 * np.random.default_rng(seed).standard_normal(frames * FRAME_SAMPLES)

    words = [sound(100 + number, _WORD_FRAMES) for number in range(4)]
    half = np.concatenate([words[3][: 3 * FRAME_SAMPLES], sound(200, 3)])
    said = [words[n % 3] for n in range(9)] + [words[3], half, words[3]]
    archive, clips, noise = tmp_path / "dev" / "tiny", tmp_path / "tasks" / "clips", tmp_path / "noise"
    for folder in (archive, clips, noise):
        folder.mkdir(parents=True)
    places = []
    for number, word in enumerate(said):
        before, after = 5 + number, 20 - number
        wave = np.concatenate([sound(1_000 + number, before), word, sound(2_000 + number, after)])
        sounds.write(archive / f"{number:02}.wav", wave)
        places.append([f"{number:02}.wav", before * FRAME_SECONDS, (before + _WORD_FRAMES) * FRAME_SECONDS])
    queries = []
    for number in range(3):
        relevant = [places[n] for n in (number + 3, number + 6)]
        queries.append({"clip": f"clips/{number}.wav", "source": places[number], "relevant": relevant, "oov": False})
    queries.append({"clip": "clips/3.wav", "source": places[9], "relevant": [places[10]], "oov": True})
    for number, word in enumerate(words):
        sounds.write(clips / f"{number}.wav", 0.3 * word)
    for number in range(2):
        sounds.write(noise / f"{number}.wav", sound(3_000 + number, 3))
    file = tmp_path / "tasks" / "tiny.json"
    file.write_text(json.dumps({"queries": queries}))
    return Task(file, archive, noise)


def textbook_warp(similarity: np.ndarray) -> np.ndarray:
    """Best mean over query frames of all paths that end at each frame, and where each starts: [ends, (mean, start)]."""
    rows, columns = similarity.shape
    total, start = similarity.astype(np.float64), np.tile(np.arange(columns), (rows, 1))
    for i in range(1, rows):
        for j in range(columns):
            before = max(range(max(0, j - 2), j + 1), key=lambda k: total[i - 1, k])
            total[i, j] += total[i - 1, before]
            start[i, j] = start[i - 1, before]
    return np.stack([total[-1] / rows, start[-1]], axis=1)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 12), st.lists(st.integers(0, 40), min_size=1, max_size=4))
def test_warp_agrees_with_the_textbook(seed: int, frames: int, lengths: list[int]) -> None:
    similarity = np.random.default_rng(seed).uniform(-1, 1, (frames, sum(lengths))).astype(np.float32)
    offsets, found = offsets_of(lengths), Found.nothing(len(lengths))
    matchers.warp(similarity, offsets, found.score, found.start, found.end)
    for number, length in enumerate(lengths):
        if length == 0:
            assert (found.score[number], found.start[number], found.end[number]) == (-1.0, 0, 0)
            continue
        ends = textbook_warp(similarity[:, offsets[number] : offsets[number + 1]])
        best = int(ends[:, 0].argmax())
        assert found.score[number] == pytest.approx(ends[best, 0], abs=1e-5)
        assert (found.end[number] - 1, found.start[number]) == (best, ends[best, 1])


def test_continuous_agrees_with_rescoring_where_embeddings_are_centroids() -> None:
    rng = np.random.default_rng(4)
    codebook = Codebook(unit(rng, 30, 16))
    ids, lengths = rng.integers(0, 30, 200).astype(np.uint16), [60, 0, 1, 139]
    query = unit(rng, 9, 16)
    recordings = Recordings(tuple("abcd"), [], codebook.centroids[ids], offsets_of(lengths), 0.04)
    found = matchers.matcher("continuous", recordings, None)(query)
    codes = rescoring.Codes(ids, np.zeros((200, 0), np.uint8), recordings.offsets)
    bare = replace(rescoring.make_tables(query, codebook), crowding=np.zeros(30, np.float32))
    matches = rescoring.match(bare, codes, per_segment=1)
    assert matches.region.tolist() == [0, 2, 3]
    assert found.score[matches.region] == pytest.approx(matches.similarity, abs=1e-5)
    first = recordings.offsets[matches.region]
    assert found.start[matches.region].tolist() == (matches.start - first).tolist()
    assert found.end[matches.region].tolist() == (matches.end - first).tolist()


letters = st.lists(st.integers(0, 5), max_size=14)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.lists(letters, min_size=1, max_size=3))
def test_infix_agrees_with_the_textbook(query: list[int], strings: list[list[int]]) -> None:
    offsets, found = offsets_of([len(s) for s in strings]), Found.nothing(len(strings))
    tokens = np.array([t for s in strings for t in s], np.uint16)
    matchers.infix(np.array(query, np.uint16), tokens, offsets, found.score, found.start, found.end)
    for number, string in enumerate(strings):
        infixes = {(a, b) for a in range(len(string) + 1) for b in range(a, len(string) + 1)}
        least = min(Levenshtein.distance(query, string[a:b]) for a, b in infixes)
        assert found.score[number] == pytest.approx(1 - least / len(query), abs=1e-6)
        start, end = found.start[number], found.end[number]
        assert (start, end) in infixes
        assert Levenshtein.distance(query, string[start:end]) == least


def test_jaccard_counts_runs_of_tokens_once() -> None:
    one, other = np.array([1, 2, 1, 2, 3], np.uint16), np.array([2, 3, 4], np.uint16)
    assert tokens_.jaccard(one, other, 1) == pytest.approx(2 / 4)
    assert tokens_.jaccard(one, other, 2) == pytest.approx(1 / 4)  # 12 21 23 and 23 34
    assert tokens_.jaccard(one, one, 2) == 1.0
    assert tokens_.jaccard(one[:1], other[:1], 2) == 0.0


def test_token_figures_of_tokens_made_by_hand() -> None:
    ids = np.array([0, 0, 1, 2, 2, 3, 0, 1, 1, 3, 3, 3], np.uint16)  # of two recordings of six frames
    collapsed = np.array([0, 1, 2, 3, 0, 1, 3], np.uint16)
    sound = np.zeros(16_000, np.float32)
    recordings = Recordings(("a", "b"), [sound, sound], np.zeros((12, 8), np.float32), offsets_of([6, 6]), 0.1)
    tokens = Tokens(
        Codebook(np.eye(8, dtype=np.float32)), ids, np.zeros((12, 0), np.uint8), collapsed, offsets_of([4, 3]),
        np.array([0, 2, 3, 5, 6, 0, 1, 3, 6]),
    )  # fmt: skip
    source, other, same_speaker = Place("a", 0.0, 0.5), Place("b", 0.0, 0.6), Place("a", 0.5, 0.6)
    query = TaskQuery("clip", source, frozenset({"a"}), (other, same_speaker), False)
    figures = tokens_.token_figures([query], recordings, tokens)
    assert (figures.size, figures.pairs) == (8, 1)
    assert figures.tokens_per_s == pytest.approx(7 / 2)
    assert figures.entropy == pytest.approx((3 * 2 / 7 * np.log(7 / 2) + 1 / 7 * np.log(7)) / np.log(8))
    assert figures.unigram == pytest.approx(2 / 4)  # 0 1 2 and 0 1 3
    assert figures.bigram == pytest.approx(1 / 3)  # 01 12 and 01 13


def test_edit_gives_its_stretch_in_frames() -> None:
    # Centroids on the axes: each frame is its own token, and the switch costs less than a wrong one.
    codebook = Codebook(np.eye(8, dtype=np.float32))
    ids = np.array([0, 0, 1, 2, 2, 3, 4, 4, 4, 5, 6, 6], np.uint16)
    recordings = Recordings(("a", "b"), [], np.eye(8, dtype=np.float32)[ids], offsets_of([6, 6]), 0.1)
    tokens = Tokens(
        codebook, ids, np.zeros((12, 0), np.uint8), np.array([0, 1, 2, 3, 4, 5, 6], np.uint16), offsets_of([4, 3]),
        np.array([0, 2, 3, 5, 6, 0, 3, 4, 6]),
    )  # fmt: skip
    found = matchers.matcher("edit", recordings, tokens)(np.eye(8, dtype=np.float32)[[4, 5, 5, 5, 6, 7]])
    assert found.score.tolist() == pytest.approx([0.0, 0.75])
    assert (found.start[1], found.end[1]) == (0, 6)
    found = matchers.matcher("edit", recordings, tokens)(np.eye(8, dtype=np.float32)[[1, 2]])
    assert (found.score[0], found.start[0], found.end[0]) == (1.0, 2, 5)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6))
def test_judges_like_the_product_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = tuple("abcdefgh")
    recordings = Recordings(names, [], np.zeros((0, 8), np.float32), offsets_of([0] * 8), 0.5)
    places = tuple(Place(str(rng.choice(names)), float(s), float(s) + 1) for s in rng.integers(0, 9, 4))
    query = TaskQuery("clip", places[0], frozenset({"a", places[0].name}), places[1:], False)
    start = rng.integers(0, 20, 8).astype(np.int32)
    found = Found(rng.permutation(8).astype(np.float32), start, start + 2)
    order = np.argsort(-found.score)
    hits = [Ranked(names[n], start[n] * 0.5, start[n] * 0.5 + 1, float(found.score[n])) for n in order]
    for located in (False, True):
        assert probes.judge(query, found, recordings, located) == judging.judge(query, hits, located)


def test_finds_the_words_of_a_task(task: Task) -> None:
    rows = probes.measure(embed, FRAME_SECONDS, task.file, task.archive, noise=task.noise, size=256)
    assert [(r.condition, r.matcher) for r in rows] == [(c, m) for c in archive.CONDITIONS for m in matchers.MATCHERS]
    for r in rows:
        assert (r.task, r.queries) == ("tiny", 4)
        if r.condition == "isolated_5db" and r.matcher != "continuous":
            continue  # the codes of so few frames of no structure do not bear noise
        # The excluded fourth source does not count; the unlisted recording comes before the half that is listed.
        assert (r.map_iv, r.map_oov, r.mrr_iv, r.mrr_oov) == (1.0, 0.5, 1.0, 0.5), (r.condition, r.matcher)
        assert (r.map, r.mrr) == (3.5 / 4, 3.5 / 4)
        # Three words of four are found before the unlisted recording, or together with it; to go on costs its price.
        false_alarm = twv.FILE_BETA / (12 - 1)
        if r.matcher == "edit":  # the same tokens are equal, so that it is together
            assert r.mtwv == pytest.approx(1.0 - false_alarm / 4)
        assert 0.75 - false_alarm / 4 <= r.mtwv <= 0.75 + 1e-6
        assert r.located_map == (3.5 / 4)
        tokens = r.tokens
        assert tokens is not None
        assert (tokens.size, tokens.pairs) == (256, 7)
        assert tokens.unigram is not None
        # Six of the pairs are the same sound; of the seventh, half is.
        assert 6 / 7 + 1 / 7 * 0.2 <= tokens.unigram < 1.0
    assert len({r.tokens for r in rows}) == 1
    table = probes.as_markdown(rows, "made up").splitlines()
    assert len(table) == 2 + len(rows) + 2
    assert table[0].startswith("| made up |")
    assert "| tiny | in_sentence | edit | 0.875 | 1.000 / 0.500 |" in table[6]
    assert table[-1].startswith("tiny: K 256, ")


def test_does_less_where_less_is_asked(task: Task) -> None:
    rows = probes.measure(embed, FRAME_SECONDS, task.file, task.archive, matchers=["continuous"])
    assert [(r.condition, r.tokens) for r in rows] == [("isolated", None), ("in_sentence", None)]  # there is no noise
    untimed = json.loads(task.file.read_text())
    for query in untimed["queries"]:
        query["source"][1:] = [None, None]
        query["relevant"] = [[name, None, None] for name, *_ in query["relevant"]]
    task.file.write_text(json.dumps(untimed))
    rows = probes.measure(embed, FRAME_SECONDS, task.file, task.archive, matchers=["edit"], size=256)
    assert [(r.condition, r.located_map, r.map) for r in rows] == [("isolated", None, 3.5 / 4)]
    assert rows[0].tokens is not None
    assert (rows[0].tokens.unigram, rows[0].tokens.bigram, rows[0].tokens.pairs) == (None, None, 0)
    with pytest.raises(ValueError, match="backwards"):
        probes.measure(embed, FRAME_SECONDS, task.file, task.archive, conditions=["backwards"])


def test_a_source_that_the_archive_lacks_is_named(task: Task) -> None:
    (task.archive / "00.wav").rename(task.archive / "gone.wav")
    with pytest.raises(TaskError, match=r"00\.wav"):
        probes.measure(embed, FRAME_SECONDS, task.file, task.archive, conditions=["in_sentence"], size=256)


def test_noise_lies_five_decibels_under_the_clip(task: Task) -> None:
    clip = read(task.file.parent / "clips" / "0.wav")  # longer than the noise
    files = sorted(task.noise.iterdir())
    noisy = [archive.with_noise(clip, files, number) for number in range(8)]
    for one in noisy:
        assert 20 * np.log10(clip.std() / (one - clip).std()) == pytest.approx(5.0, abs=0.1)
    assert np.array_equal(noisy[3], archive.with_noise(clip, files, 3))
    assert len({one.tobytes() for one in noisy}) == 8


def test_the_command_prints_one_object_a_line(task: Task, capsys: pytest.CaptureFixture[str]) -> None:
    folders = ["--speech", str(task.noise.parent), "--tasks", str(task.file.parent), "--task", "tiny", "--mfcc"]
    few = ["--condition", "isolated", "--matcher", "centroids", "continuous", "--size", "32", "--threads", "1"]
    probes.main([*folders, *few, "--json"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line.get("matcher") for line in lines] == ["centroids", "continuous", None]
    assert all(line["embedder"] == "mfcc" and line["task"] == "tiny" for line in lines)
    assert lines[1]["map_iv"] == 1.0
    assert lines[2]["size"] == 32
    probes.main([*folders, *few])
    assert capsys.readouterr().out.startswith("| mfcc | condition | matcher |")


def test_mfcc_frames_are_unit_and_in_step_with_time() -> None:
    embedder = embedders.of_mfcc()
    (features,) = embedder([sounds.babble(2.0, 1)])
    assert abs(len(features) * embedder.frame_seconds - 2.0) < 0.05
    assert np.linalg.norm(features, axis=1) == pytest.approx(1.0, abs=1e-4)


def test_a_tokenizer_gives_its_own_embeddings(tokenizer_path: Path) -> None:
    embedder = embedders.of_tokenizer(tokenizer_path, threads=1)
    waves = [sounds.babble(1.0, 1).astype(np.float32), sounds.babble(0.5, 2).astype(np.float32)]
    tokenizer = Tokenizer(tokenizer_path, threads=1)
    assert (embedder.name, embedder.frame_seconds) == (tokenizer.info.name, tokenizer.info.frame_seconds)
    for wave, part in zip(waves, embedder(waves), strict=True):
        assert np.array_equal(part, tokenizer.embed(wave))


@pytest.mark.training
def test_a_student_gives_a_frame_for_each_640_samples(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the train extra is not installed")
    from safetensors.torch import save_file

    from model.encoder import ConvolutionShape, shape_to_json
    from model.training.student import Student

    shape = ConvolutionShape(width=16, hidden=32, blocks=1, dim=8)
    student = Student(shape).eval()
    save_file(dict(student.state_dict()), tmp_path / "student.safetensors", {"shape": shape_to_json(shape)})
    wave = sounds.babble(1.0, 1).astype(np.float32)[:-100]
    embedder = embedders.of_student(tmp_path / "student.safetensors")
    (part,) = embedder([wave])
    with torch.inference_mode():
        assert np.array_equal(part, student(torch.from_numpy(wave)[None])[0].numpy())
    assert part.shape == (len(wave) // FRAME_SAMPLES, 8)
    assert embedder.frame_seconds == FRAME_SECONDS
