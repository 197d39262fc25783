"""Batches of word pairs, the losses on them, and a student that learns from them."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.encoder import FRAME_SAMPLES
from model.training.alignment import warp
from model.training.augment import Augmentation
from model.training.data import Entry, Pack
from model.training.distil import Sampler
from model.training.pairs import Codes, PairSettings, WordBatch, WordSampler, aligned_pairs
from model.training.sound import Sound
from model.training.stages import LOG_FILE, WEIGHTS_FILE, Stage, load_student, run, word_losses
from model.training.student import Student
from model.training.words import Groups, Word
from tests.training.corpus import DISTIL, SMALL

pytestmark = pytest.mark.training

CPU = torch.device("cpu")
CLEAN = Augmentation(gain_db=(0.0, 0.0), noise=0.0, room=0.0, tilt=0.0, telephone=0.0, companding=0.0, vocal_tract=0.0)
PAIRS = PairSettings(labels=6, same=3, row_frames=40, speed=(1.0, 1.0), codes=16, augmentation=CLEAN)
WHITE = 0.01  # the most that the white noise of a row adds to a sample
LABELS, SPEAKERS, GAP_FRAMES = 12, 4, 4


def said(label: int, speaker: int, frames: int) -> np.ndarray:
    """A made word: a row of chords of its own, higher or lower by speaker, faster or slower by `frames`."""
    notes = np.random.default_rng(label).uniform(300, 3_000, (4, 2)) * (0.92 + 0.05 * speaker)
    count = frames * FRAME_SAMPLES
    hz = notes[np.arange(count) * 4 // count]
    return 4_000 * np.sin(2 * np.pi * np.cumsum(hz, 0) / 16_000).sum(1)


def corpus() -> tuple[Pack, list[Word]]:
    """Each speaker says each word in one recording, between soft noise."""
    rng = np.random.default_rng(0)
    parts, words, frames = [], [], []
    for speaker in range(SPEAKERS):
        at = GAP_FRAMES
        parts.append(rng.standard_normal(GAP_FRAMES * FRAME_SAMPLES) * 300)
        for label in rng.permutation(LABELS):
            size = int(rng.integers(8, 15))
            words.append(Word(speaker, at, size, f"en/word{label}", f"s{speaker}"))
            parts += [said(int(label), speaker, size), rng.standard_normal(GAP_FRAMES * FRAME_SAMPLES) * 300]
            at += size + GAP_FRAMES
        frames.append(at)
    entries = [Entry(f"{i}.wav", "en", f"s{i}", "speech") for i in range(SPEAKERS)]
    lengths = np.array(frames, np.int64)
    pack = Pack(
        np.concatenate(parts).astype(np.int16), np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths, entries
    )
    return pack, words


def some_targets(pack: Pack) -> np.ndarray:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((int(pack.frames.sum()), SMALL.dim))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)


def sampler_of(settings: PairSettings) -> tuple[WordSampler, np.ndarray]:
    pack, words = corpus()
    targets = some_targets(pack)
    groups = Groups(words, held_labels=0.0, held_speakers=0.0)
    return WordSampler(Sound(pack, targets, CPU), groups, frozenset({"en"}), settings), targets


def frames_of(target: torch.Tensor, targets: np.ndarray) -> list[int]:
    """Which frames of the pack these targets are."""
    similarity = target.numpy() @ targets.astype(np.float32).T
    assert similarity.max(1).min() > 0.99
    return [int(i) for i in similarity.argmax(1)]


def drawn(
    settings: PairSettings, seeds: int = 3
) -> Iterator[tuple[WordSampler, np.ndarray, list[Word], int, WordBatch]]:
    """Of some batches each row: sampler, targets, words so far, row, batch. Checks what all rows must be."""
    sampler, targets = sampler_of(settings)
    pack = sampler.pack
    known = {(int(pack.start[w.recording]) + w.first, w.frames): w for w in sampler.every}
    for seed in range(seeds):
        batch = sampler.draw(np.random.default_rng(seed))
        rows = 2 * (settings.labels + settings.same)
        assert batch.waveform.shape == batch.noise.shape == (rows, settings.row_frames * FRAME_SAMPLES)
        assert batch.target.shape == (rows, settings.row_frames, SMALL.dim)
        words: list[Word] = []
        for row in range(rows):
            spoken = batch.word[row].nonzero()[:, 0]
            number = frames_of(batch.target[row][spoken], targets)
            assert number == list(range(number[0], number[0] + len(number)))
            words.append(known[number[0], len(number)])  # it is a word, from its first frame to its last
            assert spoken.tolist() == list(range(int(spoken[0]), int(spoken[0]) + len(number)))
            assert (batch.valid[row] | ~batch.word[row]).all()
            yield sampler, targets, words, row, batch
        for i in range(0, rows, 2):
            assert words[i].label == words[i + 1].label
            assert (words[i].speaker != words[i + 1].speaker) == (i < 2 * settings.labels)
        for i, j in itertools.combinations(range(rows), 2):
            assert (words[i].label == words[j].label) == bool(batch.label[i] == batch.label[j])
        assert len({word.label for word in words[: 2 * settings.labels]}) == settings.labels


def sound_of(pack: Pack, frames: list[int]) -> np.ndarray:
    return pack.samples.reshape(-1, FRAME_SAMPLES)[frames].astype(np.float32) / 32767.0


def test_a_word_stands_in_its_sentence_as_far_as_that_goes() -> None:
    longest = 0
    for sampler, targets, words, row, batch in drawn(replace(PAIRS, isolated=0.0, spliced=0.0)):
        pack, word = sampler.pack, words[row]
        valid = batch.valid[row].nonzero()[:, 0]
        number = frames_of(batch.target[row][valid], targets)
        first = int(pack.start[word.recording])
        assert number == list(range(number[0], number[0] + len(number)))
        assert first <= number[0]
        assert number[-1] < first + int(pack.frames[word.recording])
        heard = batch.waveform[row].reshape(-1, FRAME_SAMPLES).numpy()
        assert np.abs(heard[valid] - sound_of(pack, number)).max() < WHITE
        # What is left empty is so because the recording ends there.
        if valid[0] > 0:
            assert number[0] == first
        if valid[-1] < len(heard) - 1:
            assert number[-1] == first + int(pack.frames[word.recording]) - 1
        assert np.abs(heard[~batch.valid[row].numpy()]).max(initial=0) < WHITE
        longest = max(longest, len(number))
    assert longest == PAIRS.row_frames


def test_an_isolated_word_stands_between_silences() -> None:
    for sampler, targets, _, row, batch in drawn(replace(PAIRS, isolated=1.0, spliced=0.0)):
        assert torch.equal(batch.valid[row], batch.word[row])
        heard = batch.waveform[row].reshape(-1, FRAME_SAMPLES).numpy()
        spoken = batch.word[row].numpy()
        number = frames_of(batch.target[row][spoken], targets)
        assert np.abs(heard[spoken] - sound_of(sampler.pack, number)).max() < WHITE
        assert np.abs(heard[~spoken]).max() < WHITE


def test_a_spliced_word_stands_in_other_sound_that_has_no_targets() -> None:
    for sampler, targets, _, row, batch in drawn(replace(PAIRS, isolated=0.0, spliced=1.0)):
        assert torch.equal(batch.valid[row], batch.word[row])
        heard = batch.waveform[row].reshape(-1, FRAME_SAMPLES).numpy()
        spoken = batch.word[row].numpy()
        pack = sampler.pack
        assert np.abs(heard[spoken] - sound_of(pack, frames_of(batch.target[row][spoken], targets))).max() < WHITE
        # The rest is one stretch of the pack, with the word laid over it.
        every = pack.samples.reshape(-1, FRAME_SAMPLES).astype(np.float32) / 32767.0
        fits = [
            np.abs(heard - every[at : at + len(heard)])[~spoken].max() < WHITE
            for at in range(len(every) - len(heard) + 1)
        ]
        assert any(fits)


def test_a_faster_word_is_shorter_and_keeps_its_own_targets() -> None:
    speed = 1.15
    sampler, targets = sampler_of(replace(PAIRS, speed=(speed, speed)))
    pack = sampler.pack
    starts = {int(pack.start[w.recording]) + w.first: w for w in sampler.every}
    changed = 0
    batches = [sampler.draw(np.random.default_rng(seed)) for seed in range(4)]
    for batch, row in itertools.product(batches, range(18)):
        number = frames_of(batch.target[row][batch.word[row]], targets)
        word = starts.get(number[0])  # the first frame of the word is the first of the row's word at any speed
        if word is None:  # but for a rounding of what stands before it
            word = starts.get(number[0] - 1, starts.get(number[0] + 1))
        assert word is not None
        first = int(pack.start[word.recording]) + word.first
        assert all(first - 1 <= n <= first + word.frames for n in number)
        assert len(number) in (word.frames, round(word.frames / speed))
        changed += len(number) != word.frames
    assert 20 < changed < 52


def test_a_word_that_is_longer_than_a_row_is_cut() -> None:
    sampler, _ = sampler_of(replace(PAIRS, row_frames=6))
    assert sampler.draw(np.random.default_rng(0)).word.all()


def test_aligned_frames_are_numbered_end_to_end_both_ways() -> None:
    rng = np.random.default_rng(0)
    frames = [rng.standard_normal((n, 4)).astype(np.float32) for n in (5, 3, 2, 6)]
    start = [0, 5, 8, 10]
    expected = set()
    for i in (0, 2):
        for a, b in warp(np.ascontiguousarray(frames[i] @ frames[i + 1].T)).tolist():
            expected |= {(start[i] + a, start[i + 1] + b), (start[i + 1] + b, start[i] + a)}
    anchor, positive = aligned_pairs(frames)
    assert set(zip(anchor.tolist(), positive.tolist(), strict=True)) == expected
    assert len(anchor) == len(expected)


def test_codes_follow_the_frames_that_use_them() -> None:
    generator = torch.Generator().manual_seed(0)
    unit = torch.nn.functional.normalize
    codes = Codes(unit(torch.randn(4, 3, generator=generator), dim=1)).requires_grad_(False)
    before = codes.weight.clone()
    embedding, tokens = unit(torch.randn(6, 3, generator=generator), dim=1), torch.tensor([0, 0, 2, 2, 2, 0])
    codes.follow(embedding, tokens, decay=0.9)
    for k in range(4):
        mine = embedding[tokens == k]
        expected = before[k] if not len(mine) else unit(0.9 * before[k] + 0.1 * unit(mine.sum(0), dim=0), dim=0)
        assert torch.allclose(codes.weight[k], expected, atol=1e-6)
    assert torch.allclose(codes.scores(embedding), embedding @ codes.weight.T, atol=1e-6)


FLAGS = list(itertools.product((0.0, 0.3), ("balanced", "moving"), (False, True), (False, True), ("embedding", "mel")))


@pytest.mark.parametrize(("codes_weight", "codebook", "ctc", "framewise", "paths"), FLAGS)
def test_every_set_of_losses_teaches_the_student(
    codes_weight: float, codebook: str, ctc: bool, framewise: bool, paths: str
) -> None:
    torch.manual_seed(0)
    stage = Stage(
        words=1.0, codes=codes_weight, codebook=codebook, ctc=ctc, framewise=framewise, paths=paths,
        shape=SMALL, pairs=PAIRS,
    )  # fmt: skip
    sampler, _ = sampler_of(PAIRS)
    batch = sampler.draw(np.random.default_rng(0))
    student = Student(SMALL)
    embedding = student(batch.waveform)
    running = student(batch.waveform[:4].flip(1)).flatten(0, 1)
    codes = None
    if codes_weight or ctc or framewise:
        codes = Codes(running.detach()[:: len(running) // 16][:16]).requires_grad_(codebook == "balanced")
    before = None if codes is None else codes.weight.clone()
    found = word_losses(student, codes, batch, embedding, running, stage)
    has_codes = codes is not None and bool(codes_weight or codebook == "moving")
    on = {"words": True, "codes": has_codes, "ctc": ctc, "framewise": framewise}
    assert set(found) == {name for name in on if on[name]}
    for name, loss in found.items():
        assert torch.isfinite(loss)
        student.zero_grad()
        loss.backward(retain_graph=True)
        gradients = [p.grad for p in student.parameters() if p.grad is not None]
        assert all(torch.isfinite(g).all() for g in gradients)
        # Without a weight of its own a moving codebook follows, and pulls at nothing.
        pulls = name != "codes" or codes_weight > 0
        assert (float(loss.detach()) > 0) == pulls
        assert (sum(float(g.abs().sum()) for g in gradients) > 0) == pulls
    if codes is not None:
        assert codes.weight.requires_grad == (codebook == "balanced")
        assert torch.equal(codes.weight.detach(), before) == (codebook == "balanced")


def test_ctc_and_framewise_count_half_as_much_as_the_contrast() -> None:
    torch.manual_seed(0)
    stage = Stage(words=2.0, codes=0.3, ctc=True, framewise=True, shape=SMALL, pairs=PAIRS)
    sampler, _ = sampler_of(PAIRS)
    batch = sampler.draw(np.random.default_rng(0))
    student = Student(SMALL)
    embedding = student(batch.waveform)
    codes = Codes(embedding.detach().flatten(0, 1)[::40][:16])
    found = {
        k: float(v.detach()) for k, v in word_losses(student, codes, batch, embedding, embedding[0], stage).items()
    }
    assert found["framewise"] == pytest.approx(found["words"] / 2, rel=1e-4)
    assert found["ctc"] == pytest.approx(found["words"] / 2, rel=1e-4)


def contrast(student: Student, stage: Stage) -> float:
    """Of batches that are drawn once and for all, clean."""
    sampler, _ = sampler_of(stage.pairs)
    total = 0.0
    with torch.inference_mode():
        for seed in range(100, 104):
            batch = sampler.draw(np.random.default_rng(seed))
            embedding = student.eval()(batch.waveform)
            total += float(word_losses(student, None, batch, embedding, embedding[0], stage)["words"])
    return total / 4


def test_stage_one_brings_two_sayings_of_a_word_together(tmp_path: Path) -> None:
    stage = Stage(
        name="words", minutes=0.07, learning_rate=3e-3, warmup_steps=5, rows=4, words=1.0, codes=0.2, distil=0.2,
        average=0.9, evaluate_steps=5, shape=SMALL, distillation=DISTIL, pairs=PAIRS,
    )  # fmt: skip
    pack, _ = corpus()
    words, targets = sampler_of(PAIRS)
    torch.manual_seed(stage.seed)
    before = contrast(Student(SMALL), stage)
    while run(stage, Sampler(Sound(pack, targets, CPU), DISTIL), words, tmp_path, CPU)["steps"] < 20:
        stage = replace(stage, minutes=2 * stage.minutes)  # a busy machine: more time for the same steps
    after = contrast(load_student(tmp_path / WEIGHTS_FILE), stage)
    assert after < 0.75 * before
    lines = [json.loads(line) for line in (tmp_path / LOG_FILE).read_text().splitlines()]
    assert {"words", "codes", "distil", "cosine", "held_out_cosine"} <= set(lines[0])
    assert lines[-1]["words"] < lines[0]["words"]
