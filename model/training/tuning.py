"""Tuning the teacher: its last blocks learn, from word pairs, to hear the word and not the speaker or the room."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from model.encoder import FRAME_SAMPLES
from model.training import features
from model.training.alignment import same_different
from model.training.augment import Augmentation, augment
from model.training.data import Entry, Pack, write_atomically
from model.training.losses import path_contrast
from model.training.lowrank import TunedTeacher, save_tuned
from model.training.pairs import aligned_pairs
from model.training.teacher import WIDTH
from model.training.words import Groups, LabelSampler, Word

TUNED_FILE, LOG_FILE, DONE_FILE = "tuned.safetensors", "tuning.jsonl", "tuning.json"


@dataclass(frozen=True)
class TuningSettings:
    """All that decides the result."""

    minutes: float = 20.0
    rank: int = 32
    labels: int = 20  # a batch, each said by two speakers
    same: int = 18  # stretches a batch that meet themselves: in their sentence, and cut out and noisy
    cuts: int = 9_000  # stretches of any speech, without labels, that serve for that beside the words
    running: int = 12  # stretches a batch that only keep the teacher's own features
    running_frames: int = 100
    around_frames: int = 30  # at most, of the sentence on each side of a word
    isolated: float = 0.35  # share of the occurrences heard cut out and noisy
    hard: float = 0.4  # share of labels that sound like one already in the batch
    other_languages: float = 0.35  # share of labels from languages without word times
    temperature: float = 0.1
    keep: float = 3.0  # weight of staying near the teacher's own features
    average: float = 0.99  # of what is learned, a step
    learning_rate: float = 7e-4
    final_rate: float = 5e-5
    warmup_steps: int = 50
    evaluate_s: float = 120.0
    patience: int = 3  # evaluations without a gain
    seed: int = 0
    augmentation: Augmentation = field(  # of the isolated hearings
        default_factory=lambda: Augmentation(noise=0.6, room=0.4, gain_db=(-12.0, 3.0))
    )


CUT_FRAMES = (8, 30)  # 0.32 to 1.2 s
CUT_LEVEL = 0.3  # of the recording's root mean square: quieter stretches are no speech


def random_cuts(pack: Pack, count: int, seed: int = 0) -> list[Word]:
    """Stretches of speech in any language, each with a label of its own: they can only meet themselves."""
    rng = np.random.default_rng(seed)
    speech = pack.recordings("speech")
    share = pack.frames[speech] / pack.frames[speech].sum()
    cuts: list[Word] = []
    for recording in rng.choice(speech, 2 * count, p=share):
        frames = int(rng.integers(*CUT_FRAMES))
        if frames >= pack.frames[recording] or len(cuts) == count:
            continue
        first = int(rng.integers(int(pack.frames[recording]) - frames))
        wave = pack.waveform(int(recording)).astype(np.float32)
        cut = wave[first * FRAME_SAMPLES : (first + frames) * FRAME_SAMPLES]
        if np.sqrt(np.mean(cut**2)) >= CUT_LEVEL * np.sqrt(np.mean(wave**2)):
            cuts.append(Word(int(recording), first, frames, f"~/{len(cuts)}", ""))
    return cuts


def isolated_pack(pack: Pack, words: list[Word], spec: Augmentation, seed: int = 0) -> Pack:
    """Each word cut out of its recording, in a room and in noise: a pack of its own, one recording a word."""
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    noises = pack.recordings("noise")
    parts: list[npt.NDArray[np.int16]] = []
    for word in tqdm(words, "isolated", unit="word"):
        first = (int(pack.start[word.recording]) + word.first) * FRAME_SAMPLES
        cut = np.asarray(pack.samples[first : first + word.frames * FRAME_SAMPLES], np.float32) / 32767.0
        noise = np.zeros_like(cut)
        if len(noises):
            source = pack.waveform(int(rng.choice(noises)))
            noise = np.resize(np.roll(source, -int(rng.integers(len(source)))), len(cut)).astype(np.float32) / 32767.0
        changed = augment(torch.from_numpy(cut)[None], torch.from_numpy(noise)[None], spec, generator)[0].numpy()
        parts.append(np.round(changed * 32767.0).astype(np.int16))
    frames = np.array([word.frames for word in words], np.int64)
    entries = [Entry("", word.label.split("/")[0], word.speaker, "speech") for word in words]
    return Pack(np.concatenate(parts), np.concatenate([[0], np.cumsum(frames)[:-1]]), frames, entries)


@dataclass(frozen=True)
class View:
    """One hearing of a word: rows of the lower features, of which frames [at, at + frames) are the word."""

    rows: npt.NDArray[np.float16]
    at: int
    frames: int


class Views:
    """The two hearings of each word: in its sentence, and isolated."""

    def __init__(
        self, pack: Pack, lower: npt.NDArray[np.float16], words: list[Word], isolated: npt.NDArray[np.float16]
    ) -> None:
        self.pack, self.lower, self.cuts = pack, lower, isolated
        self.number = {word: i for i, word in enumerate(words)}
        self.start = np.concatenate([[0], np.cumsum([word.frames for word in words])])

    def in_sentence(self, word: Word, around: int) -> View:
        """The word with up to `around` frames on each side."""
        low = max(0, word.first - around)
        high = min(int(self.pack.frames[word.recording]), word.first + word.frames + around)
        start = int(self.pack.start[word.recording])
        return View(self.lower[start + low : start + high].reshape(-1, WIDTH), word.first - low, word.frames)

    def isolated(self, word: Word) -> View:
        """The word cut out."""
        i = self.number[word]
        return View(self.cuts[self.start[i] : self.start[i + 1]].reshape(-1, WIDTH), 0, word.frames)


def padded(views: list[View], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of several views: float32 [batch, longest, 512], and how many of each are sound, int64 [batch]."""
    rows = [len(view.rows) for view in views]
    out = np.zeros((len(views), max(rows), WIDTH), np.float16)
    for i, view in enumerate(views):
        out[i, : rows[i]] = view.rows
    return torch.from_numpy(out).float().to(device), torch.tensor(rows, device=device)


@torch.inference_mode()
def word_embeddings(tuned: TunedTeacher, views: list[View], device: torch.device) -> list[npt.NDArray[np.float32]]:
    """Unit embeddings of the word in each view."""
    out: list[npt.NDArray[np.float32]] = []
    for first in range(0, len(views), 64):
        part = views[first : first + 64]
        rows, lengths = padded(part, device)
        with torch.autocast(device.type, torch.bfloat16):
            embedded = tuned.embed(rows, lengths).float().cpu().numpy()
        out += [embedded[i, view.at : view.at + view.frames] for i, view in enumerate(part)]
    return out


def measure(
    tuned: TunedTeacher, views: Views, words: list[Word], around: int, device: torch.device
) -> dict[str, float]:
    """Same-different average precision of words in their sentences against each other and against isolated cuts."""
    sentence = word_embeddings(tuned, [views.in_sentence(word, around) for word in words], device)
    cuts = word_embeddings(tuned, [views.isolated(word) for word in words], device)
    labels, speakers = [word.label for word in words], [word.speaker for word in words]
    mixed = [cuts[i] if i % 2 else sentence[i] for i in range(len(words))]
    return {
        "sentence_ap": round(same_different(sentence, labels, speakers), 4),
        "isolated_ap": round(same_different(mixed, labels, speakers), 4),
    }


def _embedded(tuned: TunedTeacher, views: list[View], device: torch.device, groups: int = 3) -> list[Tensor]:
    """Embeddings of each view, padding included; views of like length go together, so that little is padded."""
    order = sorted(range(len(views)), key=lambda i: len(views[i].rows))
    out: dict[int, Tensor] = {}
    for part in np.array_split(np.array(order), min(groups, len(order))):
        rows, lengths = padded([views[int(i)] for i in part], device)
        with torch.autocast(device.type, torch.bfloat16):
            embedded = tuned.embed(rows, lengths)
        out |= {int(i): embedded[k] for k, i in enumerate(part)}
    return [out[i] for i in range(len(views))]


@torch.no_grad()
def _set(parameters: dict[str, torch.nn.Parameter], values: dict[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])


def tune(
    tuned: TunedTeacher,
    views: Views,
    groups: Groups,
    sampler: LabelSampler,
    whitening: features.Whitening,
    raw: npt.NDArray[np.float16],
    work: Path,
    device: torch.device,
    settings: TuningSettings,
) -> dict[str, float]:
    """Learn until the budget ends or held-out words stop gaining; the best state is in `work`. Returns its figures."""
    s = settings
    rng = np.random.default_rng(s.seed)
    trained = tuned.trained()
    optimizer = torch.optim.AdamW(trained.values(), s.learning_rate, (0.9, 0.98), weight_decay=0.01)
    mean, matrix = torch.from_numpy(whitening.mean), torch.from_numpy(whitening.matrix)
    pack = views.pack
    held = [groups.held_out[int(i)] for i in np.random.default_rng(0).permutation(len(groups.held_out))[:400]]
    taught = [word for label in groups.labels for word in groups.of[label]]
    cuts = [word for word in views.number if word.label.startswith("~")]
    average = {name: p.detach().clone() for name, p in trained.items()}
    running = np.arange(len(pack.entries))
    share = pack.frames / pack.frames.sum()
    best: dict[str, float] = {}
    spent_s, step, stale, evaluated_s = 0.0, 0, 0, -1e9
    losses = np.zeros(2)

    def in_sentence(word: Word) -> View:
        return views.in_sentence(word, int(rng.integers(0, s.around_frames + 1)))

    tuned.train()
    bar = tqdm(total=round(s.minutes * 60), desc="tune", unit="s")
    while True:
        last = time.monotonic()
        done = spent_s >= s.minutes * 60
        if spent_s - evaluated_s >= s.evaluate_s or done:
            learned = {name: p.detach().clone() for name, p in trained.items()}
            _set(trained, average)
            scores = measure(tuned.eval(), views, held, 20, device)
            tuned.train()
            line = {"step": step, "spent_s": round(spent_s), "contrast": round(losses[0], 4)}
            line |= {"kept": round(1 - losses[1], 4), **scores}
            with (work / LOG_FILE).open("a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
            stale += 1
            # Both count: a gain for cut-out words that loses running speech is none. Without held-out words to judge
            # by, the last state is the best.
            if not held or sum(scores.values()) > best.get("sum", -1.0):
                best, stale = scores | {"step": step, "sum": round(sum(scores.values()), 4)}, 0
                save_tuned(tuned, work / TUNED_FILE, {"settings": json.dumps(asdict(s))})
            _set(trained, learned)
            evaluated_s = spent_s
            last = time.monotonic()
            if done or stale >= s.patience:
                break
        share_spent = spent_s / (s.minutes * 60)
        rate = s.final_rate + (s.learning_rate - s.final_rate) * 0.5 * (1 + np.cos(np.pi * share_spent))
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / s.warmup_steps)

        batch: list[View] = []
        label_of: list[int] = []
        number_of: dict[str, int] = {}  # a word that meets itself may be one of a pair too
        for label in sampler.draw(s.labels, rng):
            for word in groups.pair(label, rng):
                alone = rng.random() < s.isolated
                batch.append(views.isolated(word) if alone else in_sentence(word))
                label_of.append(number_of.setdefault(label, len(number_of)))
        for number in range(s.same):
            pool = cuts if cuts and number % 2 else taught
            word = pool[int(rng.integers(len(pool)))]
            batch += [in_sentence(word), views.isolated(word)]
            label_of += [number_of.setdefault(word.label, len(number_of))] * 2
        spoken = len(batch)
        for recording in rng.choice(running, s.running, p=share):
            frames = min(s.running_frames, int(pack.frames[recording]))
            at = int(pack.start[recording]) + int(rng.integers(int(pack.frames[recording]) - frames + 1))
            batch.append(View(views.lower[at : at + frames].reshape(-1, WIDTH), at, frames))
        embedded = _embedded(tuned, batch, device)
        words = [embedded[i][v.at : v.at + v.frames] for i, v in enumerate(batch[:spoken])]
        anchor, positive = aligned_pairs([w.detach().cpu().numpy() for w in words])
        of_frame = torch.tensor(np.repeat(label_of, [len(w) for w in words]), device=device)
        contrast = path_contrast(torch.cat(words), of_frame, anchor.to(device), positive.to(device), s.temperature)
        ours, theirs = [], []
        for i, v in enumerate(batch[spoken:], spoken):
            ours.append(embedded[i][: v.frames])
            theirs.append(torch.from_numpy(raw[v.at : v.at + v.frames].astype(np.float32)))
        target = torch.nn.functional.normalize((torch.cat(theirs) - mean) @ matrix, dim=-1).to(device)
        kept = 1.0 - (torch.cat(ours) * target).sum(-1).mean()
        loss = contrast + s.keep * kept
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        decay = min(s.average, (1.0 + step) / (10.0 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.values()), list(trained.values()), 1.0 - decay)
        smooth = 0.98 if step else 0.0
        losses = smooth * losses + (1 - smooth) * np.array([float(contrast.detach()), float(kept.detach())])
        step += 1
        spent_s += time.monotonic() - last
        bar.update(round(spent_s) - bar.n)
        bar.set_postfix(step=step, contrast=f"{losses[0]:.3f}", kept=f"{1 - losses[1]:.3f}")
    bar.close()
    write_atomically(work / DONE_FILE, json.dumps(best))
    return best
