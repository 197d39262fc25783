"""One stage of training: a time budget, the losses that are on, and a loop that resumes where it was stopped."""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from model.codebook import spherical_kmeans
from model.encoder import AttentionShape, EncoderShape, shape_to_json
from model.export import read_weights
from model.training import losses
from model.training.augment import augment, warp_vocal_tract
from model.training.distil import DistilSettings, Sampler, distil_loss
from model.training.pairs import Codes, PairSettings, WordBatch, WordSampler, aligned_pairs, ctc_both_ways
from model.training.precision import autocast
from model.training.student import Student

SHOWN_STEPS, MOST_CONTRASTED = 10, 8_192
CHECKPOINT_FILE, WEIGHTS_FILE, LOG_FILE = "checkpoint.pt", "student.safetensors", "train.jsonl"


@dataclass(frozen=True)
class Stage:
    """All that decides the result, kept in the model card.

    `words` is the weight of the contrast along DTW paths (Stage I of BEST-STD), `codes` that of swapped prediction
    of a balanced codebook (BEST-STD 2.0) or, if `codebook` is "moving", of the pull to a codebook that follows its
    frames; `ctc` and `framewise` are Stage II of wav2tok 2.0, each on or off, with adaptive weights.
    """

    name: str = "distil"
    minutes: float = 120.0  # of training; the learning rate follows this budget
    learning_rate: float = 5e-4
    final_rate: float = 2e-5
    warmup_steps: int = 200
    weight_decay: float = 0.02
    rows: int = 32  # of running speech and isolated cuts a step
    distil: float = 1.0
    words: float = 0.0
    codes: float = 0.0
    codebook: Literal["balanced", "moving"] = "balanced"
    ctc: bool = False
    framewise: bool = False
    paths: Literal["embedding", "mel"] = "embedding"
    average: float = 0.999  # of weights, a step
    blend: float = 1.0  # share of what was learned in the weights that are left; the rest is what it began with
    checkpoint_s: float = 180.0
    evaluate_steps: int = 500
    seed: int = 0
    shape: EncoderShape = field(default_factory=AttentionShape)
    distillation: DistilSettings = field(default_factory=DistilSettings)
    pairs: PairSettings = field(default_factory=PairSettings)

    def scaled(self, by: int) -> Stage:
        """With batches so many times as large; the contrast of running speech has as many more frames up to 8,192."""
        frames = self.distillation.contrast_frames
        contrasted = max(frames, min(by * frames, MOST_CONTRASTED))
        return replace(
            self, rows=by * self.rows, distillation=replace(self.distillation, contrast_frames=contrasted),
            pairs=replace(self.pairs, labels=by * self.pairs.labels, same=by * self.pairs.same),
        )  # fmt: skip


# Distillation weighs three times the words: with as much for both, words of other languages and voices lose.
# Half way back to where it began it keeps what it gained on the words and loses next to nothing elsewhere.
STAGE_1 = Stage(name="stage-1", learning_rate=2e-4, rows=20, distil=3.0, words=0.5, codes=0.1, average=0.998, blend=0.5)
STAGE_2 = replace(STAGE_1, name="stage-2", ctc=True, framewise=True)


def learning_rate(stage: Stage, step: int, share: float) -> float:
    """Warm-up by steps, then half a cosine over the share of the time budget that is spent."""
    warm = min(1.0, (step + 1) / stage.warmup_steps)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, share)))
    return warm * (stage.final_rate + (stage.learning_rate - stage.final_rate) * cosine)


@torch.inference_mode()
def held_out_cosine(student: Student, sampler: Sampler, device: torch.device, recordings: int = 150) -> float:
    """Mean cosine of student and targets over whole held-out recordings, clean."""
    student.eval()
    total, frames = 0.0, 0
    for recording in sampler.held_out[:recordings]:
        waveform = torch.from_numpy(sampler.pack.waveform(int(recording)).astype(np.float32) / 32767.0)
        first = int(sampler.pack.start[recording])
        target = sampler.sound.targets[first : first + int(sampler.pack.frames[recording])].float()
        with autocast(device):
            embedding = student(waveform[None].to(device))[0].to(target.device)
        total += float((embedding * target).sum())
        frames += len(target)
    student.train()
    return total / frames


def load_student(path: Path) -> Student:
    """The averaged student that a stage left."""
    shape, tensors = read_weights(path)
    student = Student(shape)
    student.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in tensors.items()})
    return student.eval()


def save_student(student: Student, path: Path) -> None:
    """As a stage leaves it (safetensors); an unfinished file never has that name."""
    tensors = {name: tensor.contiguous().cpu() for name, tensor in student.state_dict().items()}
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, {"shape": shape_to_json(student.shape)})
    partial.replace(path)


def blended(one: Student, other: Student, share: float) -> Student:
    """A student of weights between two of one shape, `share` of the way to `other` (WiSE-FT, Wortsman et al. 2022)."""
    out = Student(one.shape).eval().requires_grad_(False)
    between = {name: torch.lerp(tensor, other.state_dict()[name], share) for name, tensor in one.state_dict().items()}
    out.load_state_dict(between)
    return out.to(next(one.parameters()).device)


def _atomic_save(value: object, path: Path) -> None:
    partial = path.with_suffix(".partial")
    torch.save(value, partial)
    os.replace(partial, path)


def _mel_frames(student: Student, waveform: Tensor) -> Tensor:
    """Log-mels of clean sound, four to a frame, without their mean, as unit vectors: [rows, frames, 256]."""
    mel = student.log_mel(waveform)
    mel = mel - mel.mean(2, keepdim=True)
    rows, bands, steps = mel.shape
    stacked = (
        mel[:, :, : steps - steps % 4].reshape(rows, bands, -1, 4).permute(0, 2, 1, 3).reshape(rows, -1, bands * 4)
    )
    return F.normalize(stacked, dim=-1)


def word_losses(
    student: Student, codes: Codes | None, batch: WordBatch, embedding: Tensor, running: Tensor, stage: Stage
) -> dict[str, Tensor]:
    """The losses of the word stages that are on, with their weights in them.

    `embedding` unit [rows, frames, dim] of the batch's rows; `running` unit [n, dim], frames of other speech that the
    balanced codebook must serve as well.
    """
    s = stage.pairs
    device = embedding.device
    spoken = batch.word
    frames = spoken.sum(1).tolist()
    flat = embedding[spoken]
    words = list(torch.split(flat.detach(), frames))
    if stage.paths == "mel":
        with torch.no_grad():
            words = list(torch.split(_mel_frames(student, batch.waveform)[spoken], frames))
    anchor, positive = (index.to(device) for index in aligned_pairs([w.cpu().numpy() for w in words]))
    label = batch.label.repeat_interleave(torch.tensor(frames, device=device))
    contrast = losses.path_contrast(flat, label, anchor, positive, s.temperature)
    out = {"words": stage.words * contrast}
    if codes is None:
        return out
    scores = codes.scores(flat)
    tokens = scores.detach().argmax(1)
    if stage.codebook == "moving":
        codes.follow(flat.detach(), tokens)
        out["codes"] = stage.codes * (1.0 - scores.gather(1, tokens[:, None]).mean())
    elif stage.codes:
        everything = torch.cat([scores, codes.scores(running)])
        soft = losses.sinkhorn(everything.detach(), s.sinkhorn_temperature)
        out["codes"] = stage.codes * losses.swapped_prediction(
            scores, soft[: len(scores)], anchor, positive, s.code_temperature
        )
        # Frames of running speech predict their own balanced code, so that pauses and noise have codes too.
        own = torch.arange(len(running), device=device)
        out["codes"] = out["codes"] + 0.5 * stage.codes * losses.swapped_prediction(
            everything[len(scores) :], soft[len(scores) :], own, own, s.code_temperature
        )
    if stage.ctc:
        ctc = ctc_both_ways(list(torch.split(scores, frames)), list(torch.split(tokens, frames)), s.code_temperature)
        weight = losses.adaptive_weight(contrast, ctc)
        out["ctc"] = stage.words * weight * torch.where(weight > 0, ctc, torch.zeros_like(ctc))
    if stage.framewise:
        similarity = (flat[anchor] * flat[positive]).sum(1).detach()
        a, p = losses.best_aligned(similarity, anchor, positive, len(flat))
        entropy = losses.framewise(scores, tokens, a, p, s.code_temperature)
        out["framewise"] = stage.words * losses.adaptive_weight(contrast, entropy) * entropy
    return out


def first_codes(student: Student, sampler: Sampler, stage: Stage, device: torch.device) -> Codes:
    """Prototypes by k-means of the student's own embeddings of some running speech."""
    rng = np.random.default_rng(stage.seed)
    parts: list[npt.NDArray[np.float32]] = []
    student.eval()
    while sum(len(p) for p in parts) < 24 * stage.pairs.codes:
        batch = sampler.draw(rng, 16)
        with torch.inference_mode(), autocast(device):
            parts.append(student(batch.waveform).float().cpu().numpy().reshape(-1, student.shape.dim))
    student.train()
    return Codes(torch.from_numpy(spherical_kmeans(np.concatenate(parts), stage.pairs.codes))).to(device)


def run(
    stage: Stage,
    sampler: Sampler,
    words: WordSampler | None,
    work: Path,
    device: torch.device,
    start: Path | None = None,
    rooms: Tensor | None = None,
) -> dict[str, float]:
    """Train until the budget is spent; resumes from the checkpoint in `work`. Returns the last scores.

    `start` has the weights to begin with (a student's safetensors), `rooms` responses to hear some rows in. Leaves the
    averaged weights, blended with those at the start if the stage asks for it, in `student.safetensors`, and a line of
    figures per evaluation in `train.jsonl`.
    """
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(stage.seed)
    student = (Student(stage.shape) if start is None else load_student(start)).to(device).train()
    average = Student(student.shape).to(device).eval().requires_grad_(False)
    average.load_state_dict(student.state_dict())
    needs_codes = words is not None and bool(stage.codes or stage.ctc or stage.framewise)
    codes = first_codes(student, sampler, stage, device) if needs_codes else None
    if codes is not None:
        codes.requires_grad_(stage.codebook == "balanced")
    trained = nn.ModuleList([student] + ([codes] if codes is not None else []))
    optimizer = torch.optim.AdamW(
        [p for p in trained.parameters() if p.requires_grad], stage.learning_rate, (0.9, 0.98),
        weight_decay=stage.weight_decay,
    )  # fmt: skip
    step, spent_s = 0, 0.0
    checkpoint = work / CHECKPOINT_FILE
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        trained.load_state_dict(saved["trained"])
        average.load_state_dict(saved["average"])
        optimizer.load_state_dict(saved["optimizer"])
        step, spent_s = saved["step"], saved["spent_s"]

    def save() -> None:
        _atomic_save(
            {
                "trained": trained.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict(),
                "step": step, "spent_s": spent_s,
            },
            checkpoint,
        )  # fmt: skip
        save_student(average, work / WEIGHTS_FILE)

    def embed(waveform: Tensor, noise: Tensor, spec: DistilSettings | PairSettings) -> Tensor:
        changed = augment(waveform, noise, spec.augmentation, generator, rooms)
        mel = warp_vocal_tract(student.log_mel(changed), spec.augmentation, generator)
        with autocast(device):
            return F.normalize(student.features(mel).float(), dim=-1)

    budget_s = stage.minutes * 60.0
    rng = np.random.default_rng((stage.seed, step))
    generator = torch.Generator(device).manual_seed(stage.seed * 1_000_003 + step)
    means: dict[str, Tensor] = {}
    steps_here = 0
    saved_at = last = time.monotonic()
    with tqdm(total=round(budget_s), initial=round(spent_s), desc=stage.name, unit="s") as bar:
        while spent_s < budget_s:
            rate = learning_rate(stage, step, spent_s / budget_s)
            for group in optimizer.param_groups:
                group["lr"] = rate
            batch = sampler.draw(rng, stage.rows)
            embedding = embed(batch.waveform, batch.noise, stage.distillation)
            loss_of: dict[str, Tensor] = {}
            value, cosine = distil_loss(embedding, batch, stage.distillation, generator)
            if stage.distil:
                loss_of["distil"] = stage.distil * value
            if words is not None:
                word_batch = words.draw(rng)
                heard = embed(word_batch.waveform, word_batch.noise, stage.pairs)
                loss_of |= word_losses(student, codes, word_batch, heard, embedding.flatten(0, 1)[::4], stage)
                if stage.distil:
                    kept = (heard * word_batch.target).sum(-1)[word_batch.valid].mean()
                    loss_of["distil"] = loss_of["distil"] + 0.5 * stage.distil * (1.0 - kept)
            loss = torch.stack(list(loss_of.values())).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
            optimizer.step()
            decay = min(stage.average, (1.0 + step) / (10.0 + step))
            with torch.no_grad():
                torch._foreach_lerp_(list(average.parameters()), list(student.parameters()), 1.0 - decay)
            step += 1
            steps_here += 1
            keep = min(0.98, 1.0 - 1.0 / steps_here)  # a plain mean at first
            for name, part in {**loss_of, "cosine": cosine}.items():
                means[name] = keep * means.get(name, part.detach()) + (1 - keep) * part.detach()
            if step % SHOWN_STEPS == 0 or device.type == "cpu":  # looking waits for the device
                bar.set_postfix({"step": step} | {name: f"{float(value):.3f}" for name, value in means.items()})
            now = time.monotonic()
            spent_s += now - last
            bar.update(round(spent_s) - bar.n)
            last = now
            if step % stage.evaluate_steps == 0:
                line = {"stage": stage.name, "step": step, "spent_s": round(spent_s, 1), "rate": rate}
                line |= {name: round(float(value), 4) for name, value in means.items()}
                line["held_out_cosine"] = round(held_out_cosine(average, sampler, device), 4)
                with (work / LOG_FILE).open("a", encoding="utf-8") as log:
                    log.write(json.dumps(line) + "\n")
                last = time.monotonic()
            if now - saved_at > stage.checkpoint_s:
                save()
                saved_at = last = time.monotonic()
    save()
    if start is not None and stage.blend < 1.0:
        average = blended(load_student(start).to(device), average, stage.blend)
        save_student(average, work / WEIGHTS_FILE)
    return {"held_out_cosine": held_out_cosine(average, sampler, device), "steps": float(step)}
