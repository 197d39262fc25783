"""Tuning the teacher: its blocks learn, from word pairs, to hear the word and not the speaker, the room or the rest."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from model.encoder import FRAME_SAMPLES
from model.training.alignment import same_different
from model.training.data import Pack, write_atomically
from model.training.lesson import Lesson
from model.training.lowrank import TunedTeacher, save_tuned
from model.training.views import View, Views
from model.training.words import Word

TUNED_FILE, LOG_FILE, DONE_FILE = "tuned.safetensors", "tuning.jsonl", "tuning.json"


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


@torch.inference_mode()
def word_embeddings(tuned: TunedTeacher, views: Views, heard: list[View]) -> list[npt.NDArray[np.float32]]:
    """Unit embeddings of the word in each hearing."""
    rng = np.random.default_rng(0)
    parts = [views.embed(tuned, heard[first : first + 64], rng) for first in range(0, len(heard), 64)]
    return [embedded.float().cpu().numpy() for part in parts for embedded in part]


def measure(tuned: TunedTeacher, views: Views, words: list[Word], around: int) -> dict[str, float]:
    """Same-different average precision of words in their sentences against each other and against isolated cuts."""
    sentence = word_embeddings(tuned, views, [views.in_sentence(word, around) for word in words])
    cuts = word_embeddings(tuned, views, [views.isolated(word) for word in words])
    labels, speakers = [word.label for word in words], [word.speaker for word in words]
    mixed = [cuts[i] if i % 2 else sentence[i] for i in range(len(words))]
    return {
        "sentence_ap": round(same_different(sentence, labels, speakers), 4),
        "isolated_ap": round(same_different(mixed, labels, speakers), 4),
    }


@torch.no_grad()
def _set(parameters: dict[str, torch.nn.Parameter], values: dict[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])


def tune(lesson: Lesson, work: Path) -> dict[str, float]:
    """Learn until the budget ends or held-out words stop gaining; the best state is in `work`. Returns its figures."""
    s, tuned, groups = lesson.settings, lesson.tuned, lesson.groups
    rng = np.random.default_rng(s.seed)
    trained = lesson.trained()
    optimizer = torch.optim.AdamW(trained.values(), s.learning_rate, (0.9, 0.98), weight_decay=0.01)
    held = [groups.held_out[int(i)] for i in np.random.default_rng(0).permutation(len(groups.held_out))[:400]]
    average = {name: p.detach().clone() for name, p in trained.items()}
    before = {name: tensor.clone() for name, tensor in tuned.tensors().items()}
    best: dict[str, float] = {}
    spent_s, step, stale, evaluated_s = 0.0, 0, 0, -1e9
    means: dict[str, Tensor] = {}
    tuned.train()
    bar = tqdm(total=round(s.minutes * 60), desc="tune", unit="s")
    while True:
        last = time.monotonic()
        done = spent_s >= s.minutes * 60
        if spent_s - evaluated_s >= s.evaluate_s or done:
            learned = {name: p.detach().clone() for name, p in trained.items()}
            _set(trained, average)
            scores = measure(tuned.eval(), lesson.views, held, 20)
            tuned.train()
            line: dict[str, float] = {"step": step, "spent_s": round(spent_s)}
            line |= {name: round(float(value), 4) for name, value in means.items()} | scores
            with (work / LOG_FILE).open("a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
            stale += 1
            # Both count: a gain for cut-out words that loses running speech is none. Without held-out words to judge
            # by, the last state is the best.
            if not held or sum(scores.values()) > best.get("sum", -1.0):
                best, stale = scores | {"step": step, "sum": round(sum(scores.values()), 4)}, 0
                save_tuned(tuned, work / TUNED_FILE, {"settings": json.dumps(asdict(s))}, s.share, before)
            _set(trained, learned)
            evaluated_s = spent_s
            last = time.monotonic()
            if done or stale >= s.patience:
                break
        share_spent = spent_s / (s.minutes * 60)
        rate = s.final_rate + (s.learning_rate - s.final_rate) * 0.5 * (1 + np.cos(np.pi * share_spent))
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / s.warmup_steps)
        losses = lesson.losses(rng)
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        decay = min(s.average, (1.0 + step) / (10.0 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.values()), list(trained.values()), 1.0 - decay)
        smooth = 0.98 if step else 0.0
        for name, loss in losses.items():
            means[name] = smooth * means.get(name, loss.detach()) + (1 - smooth) * loss.detach()
        step += 1
        spent_s += time.monotonic() - last
        bar.update(round(spent_s) - bar.n)
        bar.set_postfix({"step": step} | {name: f"{float(value):.3f}" for name, value in means.items()})
    bar.close()
    write_atomically(work / DONE_FILE, json.dumps(best))
    return best
