"""The tuned teacher: where it starts, its file, its mask, the cuts it is tuned on, and a short tuning."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from model.encoder import FRAME_SAMPLES
from model.training import recipe, targets, tuning
from model.training.augment import Augmentation
from model.training.data import Entry, Pack
from model.training.features import Whitening, fit_whitening
from model.training.lesson import Lesson, phone_loss
from model.training.losses import blank_free_ctc
from model.training.lowrank import LowRankLinear, TunedTeacher, load_tuned, save_tuned
from model.training.pairalign.hearings import isolated_pack
from model.training.pairs import Codes
from model.training.phones import PAUSE, Phones, Said
from model.training.teacher import WIDTH
from model.training.tuning import measure, random_cuts, tune
from model.training.tuningsettings import TuningSettings
from model.training.views import View, Views, padded
from model.training.words import Groups, LabelSampler, Word
from tests.training.corpus import random_teacher

pytestmark = pytest.mark.training

CPU = torch.device("cpu")
DIM, RANK = 8, 2
CLEAN = Augmentation(gain_db=(0.0, 0.0), noise=0.0, room=0.0, tilt=0.0, telephone=0.0, companding=0.0)


def some_sound(*shape: int, seed: int = 0) -> torch.Tensor:
    """Noise float32 [..., frames * 640]."""
    *rows, frames = shape
    return 0.1 * torch.randn(*rows, frames * FRAME_SAMPLES, generator=torch.Generator().manual_seed(seed))


def pooled(sound: torch.Tensor) -> torch.Tensor:
    """What the untuned teacher makes of stretches that it hears alone."""
    model, frames = random_teacher(), sound.shape[1] // FRAME_SAMPLES
    with torch.inference_mode():
        return model.encode(model.log_mel(torch.nn.functional.pad(sound, (0, 5_000))), 2 * frames)


def some_whitening() -> Whitening:
    return fit_whitening(pooled(some_sound(1, 400, seed=9))[0].half().numpy(), DIM)


def untuned() -> TunedTeacher:
    torch.manual_seed(1)
    return TunedTeacher(random_teacher(), some_whitening(), RANK).eval()


@torch.no_grad()
def changed(tuned: TunedTeacher) -> TunedTeacher:
    """As if it had learned something."""
    generator = torch.Generator().manual_seed(4)
    for parameter in tuned.trained().values():
        parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return tuned


def test_it_starts_as_the_whitened_teacher() -> None:
    sound, whitening = some_sound(3, 20), some_whitening()
    with torch.inference_mode():
        white = (pooled(sound) - torch.from_numpy(whitening.mean)) @ torch.from_numpy(whitening.matrix)
        expected = normalize(white, dim=-1)
        found = untuned().embed(sound)
    assert found.shape == (3, 20, DIM)
    assert torch.allclose(found, expected, atol=1e-4)
    with torch.inference_mode():
        assert not torch.allclose(changed(untuned()).embed(sound), expected, atol=0.05)
        # Where a stretch stands in the encoder's window is asked for, and never beyond its end.
        assert not torch.allclose(untuned().embed(sound, position=300), expected, atol=1e-3)
        assert torch.equal(untuned().embed(sound, position=1_460), untuned().embed(sound, position=9_999))


def test_only_the_small_part_is_trained() -> None:
    tuned = untuned()
    names = {name.rsplit(".", 1)[1] for name in tuned.trained() if name.startswith("teacher.blocks")}
    assert names == {"a", "b"}
    assert {int(name.split(".")[2]) for name in tuned.trained() if name.startswith("teacher.blocks")} == set(range(6))
    others = {name for name in tuned.trained() if not name.startswith("teacher.blocks")}
    assert others == {"mix", "teacher.ln_post.weight", "teacher.ln_post.bias"}
    layer = next(m for m in tuned.modules() if isinstance(m, LowRankLinear))
    with torch.no_grad():
        layer.b.copy_(torch.randn(layer.b.shape))
        x = torch.randn(4, layer.base.in_features)
        assert torch.allclose(layer(x), layer.base(x) + (x @ layer.a.T) @ layer.b.T, atol=1e-3)


def test_its_file_holds_all_that_was_learned(tmp_path: Path) -> None:
    tuned, rows = changed(untuned()), some_sound(2, 15)
    save_tuned(tuned, tmp_path / "tuned.safetensors", {"settings": "{}"})
    loaded = load_tuned(random_teacher(), tmp_path / "tuned.safetensors")
    with torch.inference_mode():
        expected, found = tuned.embed(rows), loaded.embed(rows)
        assert (found * expected).sum(-1).min() > 0.9999  # the file is in half precision
        assert (untuned().embed(rows) * expected).sum(-1).min() < 0.99
    # Half of what was learned lies between.
    save_tuned(tuned, tmp_path / "half.safetensors", {"settings": "{}"}, 0.5)
    half = load_tuned(random_teacher(), tmp_path / "half.safetensors")
    layer, whole, base = (t.teacher.blocks[2].mlp[0] for t in (half, tuned, untuned()))
    between = [torch.eye(WIDTH) @ (x.base.weight + x.b @ x.a).T for x in (layer, whole, base)]  # type: ignore[operator]
    assert torch.allclose(between[0], 0.5 * (between[1] + between[2]), atol=1e-3)
    # What was there before stays whole: half of what came since is kept, and that is nothing.
    save_tuned(tuned, tmp_path / "kept.safetensors", {"settings": "{}"}, 0.5, tuned.tensors())
    kept = load_tuned(random_teacher(), tmp_path / "kept.safetensors").teacher.blocks[2].mlp[0]
    assert torch.allclose(torch.eye(WIDTH) @ (kept.base.weight + kept.b @ kept.a).T, between[1], atol=1e-3)  # type: ignore[operator]
    # What was loaded can be saved again, and is the same.
    save_tuned(loaded, tmp_path / "again.safetensors", {"settings": "{}"})
    with torch.inference_mode():
        again = load_tuned(random_teacher(), tmp_path / "again.safetensors").embed(rows)
        assert torch.allclose(again, found, atol=1e-5)


def int16(sound: torch.Tensor) -> np.ndarray:
    return np.round(sound.numpy() * 32767.0).astype(np.int16)


def test_padding_changes_nothing() -> None:
    tuned = changed(untuned())
    views = [View(int16(some_sound(n, seed=n)), 0, n) for n in (5, 20, 11)]
    sound, frames = padded(views, CPU)
    assert sound.shape == (3, 20 * FRAME_SAMPLES)
    assert frames.tolist() == [5, 20, 11]
    spoiled = sound.clone()
    spoiled[0, 5 * FRAME_SAMPLES :], spoiled[2, 11 * FRAME_SAMPLES :] = 0.9, -0.3
    with torch.inference_mode():
        together, other = tuned.embed(sound, frames), tuned.embed(spoiled, frames)
        for i, view in enumerate(views):
            alone = tuned.embed(torch.from_numpy(view.samples.astype(np.float32) / 32767.0)[None])[0]
            assert torch.allclose(together[i, : view.frames], alone, atol=1e-4)
            assert torch.allclose(other[i, : view.frames], alone, atol=1e-4)
        # Without the mask it would.
        assert not torch.allclose(tuned.embed(spoiled)[0, :5], together[0, :5], atol=0.05)


def small_pack() -> Pack:
    rng = np.random.default_rng(0)
    frames = np.array([90, 80, 100, 70], np.int64)
    samples = (rng.standard_normal(int(frames.sum()) * 640) * 2_000).astype(np.int16)
    samples[: 45 * 640] //= 100  # the first half of the first recording is a pause
    entries = [Entry(f"{i}.wav", "en", f"s{i}", "speech") for i in range(3)] + [Entry("n.wav", "", "", "noise")]
    return Pack(samples, np.concatenate([[0], np.cumsum(frames)[:-1]]), frames, entries)


def test_a_cut_is_its_stretch_of_the_recording() -> None:
    pack = small_pack()
    words = [Word(2, 10, 8, "en/one", "s2"), Word(0, 50, 12, "en/two", "s0")]
    cut = isolated_pack(pack, words, CLEAN)
    assert cut.frames.tolist() == [8, 12]
    assert cut.start.tolist() == [0, 8]
    for i, word in enumerate(words):
        there = pack.waveform(word.recording)[word.first * 640 : (word.first + word.frames) * 640]
        assert np.abs(cut.waveform(i).astype(int) - there).max() <= 2
    noisy = isolated_pack(pack, words, replace(CLEAN, noise=1.0))
    assert np.abs(noisy.samples.astype(int) - cut.samples).mean() > 50
    assert (isolated_pack(pack, words, replace(CLEAN, noise=1.0)).samples == noisy.samples).all()


def test_random_cuts_are_of_speech_and_each_alone() -> None:
    cuts = random_cuts(small_pack(), 50)
    assert len(cuts) == 50
    assert len({cut.label for cut in cuts}) == 50
    assert {cut.recording for cut in cuts} == {0, 1, 2}
    low, high = tuning.CUT_FRAMES
    for cut in cuts:
        assert low <= cut.frames < high
        assert 0 <= cut.first <= small_pack().frames[cut.recording] - cut.frames
        # A quiet stretch is none; a short end of the sound next to it is heard.
        assert cut.recording > 0 or cut.first + cut.frames > 45


def test_views_hold_the_sound_of_their_word() -> None:
    pack = small_pack()
    words = [Word(1, 3, 8, "en/one", "s1"), Word(2, 95, 5, "en/two", "s2")]
    views = Views(pack, CLEAN, CPU)
    tuned = changed(untuned())
    for word in words:
        there = pack.waveform(word.recording)
        for around in (0, 5):
            view = views.in_sentence(word, around)
            low = max(0, word.first - around)
            high = min(int(pack.frames[word.recording]), word.first + word.frames + around)
            assert (view.samples == there[low * FRAME_SAMPLES : high * FRAME_SAMPLES]).all()
            assert (view.at, view.frames, view.changed) == (word.first - low, word.frames, False)
        cut = views.isolated(word)
        assert (cut.samples == there[word.first * FRAME_SAMPLES : (word.first + word.frames) * FRAME_SAMPLES]).all()
        assert (cut.at, cut.frames, cut.changed) == (0, word.frames, True)
    some = [view for word in words for view in (views.in_sentence(word, 5), views.isolated(word))]
    with torch.inference_mode():
        heard = views.embed(tuned, some, np.random.default_rng(0))
        noisy = Views(pack, replace(CLEAN, noise=1.0), CPU).embed(tuned, some, np.random.default_rng(0))
    assert [len(x) for x in heard] == [view.frames for view in some]
    # Those cut out are heard in noise, the others as they are.
    assert [torch.allclose(a, b, atol=1e-5) for a, b in zip(heard, noisy, strict=True)] == [True, False, True, False]


def spoken(labels: int = 8, speakers: int = 3) -> tuple[Pack, list[Word]]:
    """Recordings by speaker, in which each word is two tones and the speaker's own."""
    size, gap = 8, 3
    frames = np.full(speakers, labels * (size + gap), np.int64)
    samples = 300 * np.random.default_rng(5).standard_normal(int(frames.sum()) * FRAME_SAMPLES)
    time = np.arange(size * FRAME_SAMPLES) / 16_000
    words = []
    for speaker in range(speakers):
        for i, label in enumerate(np.random.default_rng(speaker).permutation(labels)):
            first = i * (size + gap)
            at = (int(frames[0]) * speaker + first) * FRAME_SAMPLES
            notes = [*np.random.default_rng(100 + label).uniform(300, 3_000, 2), 200 + 60 * speaker]
            samples[at : at + len(time)] += 3_000 * sum(np.sin(2 * np.pi * hz * time) for hz in notes)
            words.append(Word(speaker, first, size, f"en/word{label}", f"s{speaker}"))
    entries = [Entry(f"{i}.wav", "en", f"s{i}", "speech") for i in range(speakers)]
    return Pack(samples.astype(np.int16), np.arange(speakers) * frames[0], frames, entries), words


QUICK = TuningSettings(
    minutes=0.04, rank=RANK, labels=4, same=2, running=2, running_frames=20, stretches=2, around_frames=4,
    share=1.0, learning_rate=3e-3, warmup_steps=2, evaluate_s=0.8, patience=50, average=0.5,
)  # fmt: skip


def phones_of(words: list[Word], monkeypatch: pytest.MonkeyPatch) -> Phones:
    """Word n is read as three phones of its own."""
    monkeypatch.setattr("model.training.phones.RARE", 1)
    spelled = {word.label: tuple(f"{word.label}{part}" for part in "abc") for word in words}
    return Phones([Said(w.recording, w.first, w.frames, (spelled[w.label],)) for w in words], spelled)


def lesson_of(settings: TuningSettings, held_labels: float, phones: Phones | None = None) -> Lesson:
    pack, words = spoken()
    groups = Groups(words, held_labels=held_labels, held_speakers=0.0)
    raw = np.concatenate([pooled(torch.from_numpy(pack.waveform(i)[None] / np.float32(32767)))[0] for i in range(3)])
    sampler = LabelSampler(groups, frozenset({"en"}), settings.hard, settings.other_languages)
    views = Views(pack, CLEAN, CPU)
    return Lesson(untuned(), views, groups, sampler, [], some_whitening(), raw.astype(np.float16), phones, settings)


def test_a_short_tuning_keeps_the_best_state_and_writes_its_log(tmp_path: Path) -> None:
    lesson = lesson_of(QUICK, held_labels=0.25)
    best, tuned, views = tune(lesson, tmp_path), lesson.tuned, lesson.views
    lines = [json.loads(line) for line in (tmp_path / tuning.LOG_FILE).read_text().splitlines()]
    assert len(lines) >= 2
    assert lines[0]["step"] == 0
    assert lines[-1]["step"] > 0
    for line in lines:
        losses = {"contrast", "kept"} if line["step"] else set()
        assert {"step", "spent_s", "sentence_ap", "isolated_ap"} | losses == set(line)
        assert all(np.isfinite(value) for value in line.values())
        assert 0 <= line["sentence_ap"] <= 1
    assert best["sum"] == pytest.approx(max(line["sentence_ap"] + line["isolated_ap"] for line in lines), abs=1e-3)
    assert json.loads((tmp_path / tuning.DONE_FILE).read_text()) == best
    # The file has the state that was measured as the best.
    groups = Groups(spoken()[1], held_labels=0.25, held_speakers=0.0)
    order = np.random.default_rng(0).permutation(len(groups.held_out))
    held = [groups.held_out[int(i)] for i in order]
    loaded = load_tuned(random_teacher(), tmp_path / tuning.TUNED_FILE)
    scores = measure(loaded, views, held, 20)
    assert scores["sentence_ap"] == pytest.approx(best["sentence_ap"], abs=0.05)
    # All that may learn has learned, and nothing else has moved.
    fresh = untuned()
    for (name, now), (_, then) in zip(tuned.named_parameters(), fresh.named_parameters(), strict=True):
        assert torch.equal(now, then) != now.requires_grad, name


def test_without_held_out_words_the_last_state_is_kept(tmp_path: Path) -> None:
    best = tune(lesson_of(replace(QUICK, minutes=0.02, evaluate_s=0.4, patience=1), held_labels=0.0), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / tuning.LOG_FILE).read_text().splitlines()]
    assert best["step"] == lines[-1]["step"] > 0


def test_phones_are_learned_beside_the_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = spoken()[1]
    phones = phones_of(words, monkeypatch)
    assert phones.size == 8 * 3 + 1
    lesson = lesson_of(QUICK, held_labels=0.0, phones=phones)
    assert lesson.codes is not None
    assert "phones" in lesson.trained()

    def loss_of(tuned: TunedTeacher) -> float:
        """Of every word in its sentence, read from its own phones."""
        rng = np.random.default_rng(0)
        with torch.inference_mode():
            heard = lesson.views.embed(tuned, [lesson.views.in_sentence(w, 0) for w in words], rng)
            scores = [lesson.codes.scores(x) for x in heard]  # type: ignore[union-attr]
            return float(phone_loss(scores, phones.labels_of, QUICK.phone_temperature))

    before, steps = loss_of(lesson.tuned), 0
    while steps < 25:  # a busy machine: more time for the same steps
        tune(lesson, tmp_path)
        lines = [json.loads(line) for line in (tmp_path / tuning.LOG_FILE).read_text().splitlines()]
        steps += lines[-1]["step"]
    assert loss_of(lesson.tuned.eval()) < 0.8 * before
    assert lines[-1]["phones"] > 0
    # The file has nothing of the phones: they serve tuning alone.
    assert not [
        name for name in load_tuned(random_teacher(), tmp_path / tuning.TUNED_FILE).tensors() if "phone" in name
    ]


def test_the_loss_of_phones_is_a_mean_over_stretches_a_frame() -> None:
    codes = Codes(normalize(torch.randn(4, 6, generator=torch.Generator().manual_seed(1)), dim=-1))
    frames = [5, 3, 1]
    heard = [normalize(torch.randn(n, 6, generator=torch.Generator().manual_seed(n)), dim=-1) for n in frames]
    labels = [[PAUSE, 1, 2, PAUSE], [3, PAUSE], [1, 2, 3]]  # the last does not fit into its frame
    with torch.inference_mode():
        scores = [codes.scores(x) for x in heard]
        each = [
            blank_free_ctc(
                torch.log_softmax(s / 0.1, -1)[None], torch.tensor([len(s)]), torch.tensor([label]),
                torch.tensor([len(label)]), PAUSE,
            ) / len(s)
            for s, label in zip(scores[:2], labels[:2], strict=True)
        ]  # fmt: skip
        assert float(phone_loss(scores, labels, 0.1)) == pytest.approx(float(torch.cat(each).mean()), rel=1e-5)
        assert float(phone_loss(scores[2:], labels[2:], 0.1)) == 0.0


def test_targets_of_a_tuned_teacher_do_not_depend_on_what_they_are_batched_with(tmp_path: Path) -> None:
    tuned = changed(untuned())
    frames = np.array([30, 620, 5, 100], np.int64)  # the second is cut at 20 s
    sound = some_sound(755, seed=2)
    pack = Pack(int16(sound), np.concatenate([[0], np.cumsum(frames)[:-1]]), frames, [])
    made = targets.tuned(pack, tuned, tmp_path / "targets.f16", CPU)
    assert made.shape == (755, DIM)
    stretches = [(0, 30), (30, 500), (530, 120), (650, 5), (655, 100)]
    with torch.inference_mode():
        for at, count in stretches:
            expected = tuned.embed(sound[None, at * FRAME_SAMPLES : (at + count) * FRAME_SAMPLES])[0].numpy()
            assert ((made[at : at + count].astype(np.float32) * expected).sum(1) > 0.98).all()
    assert not list(tmp_path.glob("*.partial"))


def test_tuning_begins_with_what_was_tuned_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.training.teacher.load_teacher", lambda source: random_teacher())
    pack, words = spoken()
    groups = Groups(words, held_labels=0.0, held_speakers=0.0)
    raw = np.zeros((int(pack.frames.sum()), WIDTH), np.float16)
    prepared = recipe.Prepared(pack, raw, some_whitening(), groups, frozenset({"en"}))
    save_tuned(changed(untuned()), tmp_path / "before.safetensors", {"settings": "{}"})
    sound, settings = some_sound(2, 12), replace(QUICK, minutes=0.0, cuts=4, share=0.7)
    found = []
    for name, start in (("fresh", None), ("on", tmp_path / "before.safetensors")):
        (tmp_path / name).mkdir()
        corpus = recipe.Corpus(tmp_path, None)
        out = recipe.tune_teacher(corpus, prepared, "", settings, tmp_path / name, CPU, 1, start)
        with torch.inference_mode():
            found.append(load_tuned(random_teacher(), out).embed(sound))
            expected = (untuned() if start is None else changed(untuned())).embed(sound)
        assert (found[-1] * expected).sum(-1).min() > 0.999
    assert (found[0] * found[1]).sum(-1).min() < 0.99


def test_larger_batches_are_for_devices_that_are_fast() -> None:
    plan = recipe.plan(4.0, 2.0, None, (1.0, 0.5), 4e-4, scale=8)
    assert [stage.name for stage in plan.stages] == ["distil", "stage-1", "stage-2"]
    plain = recipe.plan(4.0, 2.0, None, (1.0, 0.5), 4e-4)
    assert plan.tuning is not None
    assert plain.tuning is not None
    assert plan.tuning.same == 8 * plain.tuning.same
    assert plan.tuning.labels == 4 * plain.tuning.labels
    for large, small in zip(plan.stages, plain.stages, strict=True):
        assert (large.rows, large.pairs.labels) == (8 * small.rows, 8 * small.pairs.labels)
        assert large.learning_rate == small.learning_rate
        assert large.distillation.contrast_frames == 8_192
    assert plain.stages == recipe.plan(4.0, 2.0, None, (1.0, 0.5), 4e-4, scale=1).stages
