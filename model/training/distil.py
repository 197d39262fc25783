"""Distillation: the student learns, frame by frame and without labels, the whitened features of the teacher."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from model.encoder import FRAME_SAMPLES, EncoderShape
from model.training.augment import Augmentation, augment
from model.training.data import Pack
from model.training.student import Student
from model.training.teacher import Whitening

CHECKPOINT_FILE, WEIGHTS_FILE, LOG_FILE = "checkpoint.pt", "student.safetensors", "train.jsonl"


@dataclass(frozen=True)
class DistilSettings:
    """All that decides the result, kept in the checkpoint and the model card."""

    minutes: float = 120.0  # of training; the learning rate follows this budget
    batch: int = 32
    crop_frames: int = 100  # 4 s
    isolated: float = 0.34  # share of rows made of short cuts between silences
    cut_frames: tuple[int, int] = (8, 30)  # 0.32 to 1.2 s
    learning_rate: float = 1e-3
    final_rate: float = 2e-5
    warmup_steps: int = 200
    weight_decay: float = 0.02
    contrast: float = 0.3  # weight of the frame InfoNCE
    contrast_frames: int = 1_536
    temperature: float = 0.07
    neighbour_frames: int = 4  # frames this close to each other are no negatives
    average: float = 0.999  # of weights, a step
    held_out: float = 0.02  # share of the speech recordings that only measure
    checkpoint_s: float = 180.0
    evaluate_steps: int = 500
    seed: int = 0
    shape: EncoderShape = field(default_factory=EncoderShape)
    augmentation: Augmentation = field(default_factory=Augmentation)


@dataclass(frozen=True)
class Batch:
    """Waveform and noise float32 [batch, samples], target float32 [batch, frames, dim], valid bool [batch, frames]."""

    waveform: Tensor
    noise: Tensor
    target: Tensor
    valid: Tensor


class Sampler:
    """Draws batches: rows of running speech filled from several recordings, and rows of isolated cuts.

    The targets of a cut stay the teacher's features of the same frames in the full recording.
    """

    def __init__(
        self, pack: Pack, features: npt.NDArray[np.float16], whitening: Whitening, settings: DistilSettings
    ) -> None:
        self.pack, self.features, self.settings = pack, features, settings
        self.mean = torch.from_numpy(whitening.mean)
        self.matrix = torch.from_numpy(whitening.matrix)
        order = np.random.default_rng(settings.seed).permutation(pack.recordings("speech"))
        held = max(1, round(len(order) * settings.held_out))
        self.held_out, speech = order[:held], order[held:]
        self.noise = pack.recordings("noise")
        self.train = np.concatenate([speech, self.noise])
        weights = pack.frames[self.train].astype(np.float64)
        self.weights = weights / weights.sum()

    def targets(self, first: int, frames: int) -> Tensor:
        """Whitened unit features of a stretch of the pack: float32 [frames, dim]."""
        raw = torch.from_numpy(self.features[first : first + frames].astype(np.float32))
        return F.normalize((raw - self.mean) @ self.matrix, dim=-1)

    def _stretch(self, rng: np.random.Generator, low: int, high: int) -> tuple[int, int]:
        recording = int(rng.choice(self.train, p=self.weights))
        frames = min(int(rng.integers(low, high + 1)), int(self.pack.frames[recording]))
        first = int(self.pack.start[recording]) + int(rng.integers(0, int(self.pack.frames[recording]) - frames + 1))
        return first, frames

    def draw(self, rng: np.random.Generator) -> Batch:
        """One batch of `settings.batch` rows."""
        s = self.settings
        samples = s.crop_frames * FRAME_SAMPLES
        waveform = np.zeros((s.batch, samples), np.float32)
        noise = np.zeros((s.batch, samples), np.float32)
        dim = self.matrix.shape[1]
        target = torch.zeros((s.batch, s.crop_frames, dim))
        valid = torch.zeros((s.batch, s.crop_frames), dtype=torch.bool)
        for row in range(s.batch):
            isolated = rng.random() < s.isolated
            at = int(rng.integers(0, 10)) if isolated else 0
            while at < s.crop_frames - 4:
                low, high = s.cut_frames if isolated else (s.crop_frames - at, s.crop_frames - at)
                first, frames = self._stretch(rng, low, high)
                frames = min(frames, s.crop_frames - at)
                cut = self.pack.samples[first * FRAME_SAMPLES : (first + frames) * FRAME_SAMPLES]
                waveform[row, at * FRAME_SAMPLES : (at + frames) * FRAME_SAMPLES] = cut / 32767.0
                target[row, at : at + frames] = self.targets(first, frames)
                valid[row, at : at + frames] = True
                at += frames + (int(rng.integers(5, 20)) if isolated else 0)
            if len(self.noise):
                source = self.pack.waveform(int(rng.choice(self.noise)))
                shift = int(rng.integers(0, max(1, len(source))))
                noise[row] = np.resize(np.roll(source, -shift), samples) / 32767.0
        white = 1e-4 * 10 ** rng.uniform(-1, 1, (s.batch, 1)).astype(np.float32)
        waveform += white * rng.standard_normal(waveform.shape, dtype=np.float32)
        return Batch(torch.from_numpy(waveform), torch.from_numpy(noise), target, valid)


def frame_contrast(
    embedding: Tensor, target: Tensor, place: Tensor, temperature: float, neighbour_frames: int
) -> Tensor:
    """InfoNCE of frames against targets (van den Oord et al. 2018): unit float32 [n, dim] both, `place` int64 [n].

    Frames whose places differ by at most `neighbour_frames` are left out of each other's negatives.
    """
    logits = embedding @ target.T / temperature
    distance = (place[:, None] - place[None, :]).abs()
    logits = logits.masked_fill((distance <= neighbour_frames) & (distance > 0), -torch.inf)
    return F.cross_entropy(logits, torch.arange(len(embedding), device=embedding.device))


def learning_rate(settings: DistilSettings, step: int, share: float) -> float:
    """Warm-up by steps, then half a cosine over the share of the time budget that is spent."""
    warm = min(1.0, (step + 1) / settings.warmup_steps)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, share)))
    return warm * (settings.final_rate + (settings.learning_rate - settings.final_rate) * cosine)


@dataclass
class _State:
    step: int = 0
    spent_s: float = 0.0


def _prefetched(sampler: Sampler, seed: tuple[int, int]) -> Iterator[Batch]:
    rng = np.random.default_rng(seed)
    while True:
        yield sampler.draw(rng)


@torch.inference_mode()
def held_out_cosine(student: Student, sampler: Sampler, device: torch.device, recordings: int = 150) -> float:
    """Mean cosine of student and teacher over whole held-out recordings, clean."""
    student.eval()
    total, frames = 0.0, 0
    for recording in sampler.held_out[:recordings]:
        waveform = torch.from_numpy(sampler.pack.waveform(int(recording)).astype(np.float32) / 32767.0)
        target = sampler.targets(int(sampler.pack.start[recording]), int(sampler.pack.frames[recording]))
        with torch.autocast(device.type, torch.bfloat16):
            embedding = student(waveform[None].to(device))[0].cpu()
        total += float((embedding * target).sum())
        frames += len(target)
    student.train()
    return total / frames


def _atomic_save(value: object, path: Path) -> None:
    partial = path.with_suffix(".partial")
    torch.save(value, partial)
    os.replace(partial, path)


def distil(sampler: Sampler, work: Path, device: torch.device, settings: DistilSettings) -> dict[str, float]:
    """Train until the budget is spent; resumes from the checkpoint in `work`. Returns the last scores.

    Leaves the averaged weights in `student.safetensors` and one line of figures per evaluation in `train.jsonl`.
    """
    torch.manual_seed(settings.seed)
    student = Student(settings.shape).to(device)
    average = Student(settings.shape).to(device).requires_grad_(False)
    average.load_state_dict(student.state_dict())
    optimizer = torch.optim.AdamW(
        student.parameters(), settings.learning_rate, (0.9, 0.98), weight_decay=settings.weight_decay
    )
    state = _State()
    checkpoint = work / CHECKPOINT_FILE
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        student.load_state_dict(saved["student"])
        average.load_state_dict(saved["average"])
        optimizer.load_state_dict(saved["optimizer"])
        state = _State(saved["step"], saved["spent_s"])

    def save() -> None:
        _atomic_save(
            {
                "student": student.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict(),
                "step": state.step, "spent_s": state.spent_s,
            },
            checkpoint,
        )  # fmt: skip
        tensors = {name: tensor.contiguous().cpu() for name, tensor in average.state_dict().items()}
        save_file(tensors, work / WEIGHTS_FILE, {"shape": json.dumps(asdict(settings.shape))})

    budget_s = settings.minutes * 60.0
    batches = _prefetched(sampler, (settings.seed, state.step))
    generator = torch.Generator(device).manual_seed(settings.seed * 1_000_003 + state.step)
    loss_mean, cosine_mean, steps_here = 0.0, 0.0, 0
    saved_at = last = time.monotonic()
    place = torch.arange(settings.batch * settings.crop_frames, device=device)
    place = place + (place // settings.crop_frames) * settings.neighbour_frames  # rows are no neighbours
    with tqdm(total=round(budget_s), initial=round(state.spent_s), desc="distil", unit="s") as bar:
        while state.spent_s < budget_s:
            batch = next(batches)
            rate = learning_rate(settings, state.step, state.spent_s / budget_s)
            for group in optimizer.param_groups:
                group["lr"] = rate
            waveform = augment(batch.waveform.to(device), batch.noise.to(device), settings.augmentation, generator)
            valid = batch.valid.reshape(-1).to(device)
            target = batch.target.reshape(len(valid), -1).to(device)
            with torch.autocast(device.type, torch.bfloat16):
                embedding = student(waveform).reshape(len(valid), -1)
            cosine = (embedding * target).sum(-1)[valid].mean()
            at = valid.nonzero()[:, 0]
            at = at[torch.randperm(len(at), generator=generator, device=device)[: settings.contrast_frames]]
            with torch.autocast(device.type, torch.bfloat16):
                contrast = frame_contrast(
                    embedding[at], target[at], place[at], settings.temperature, settings.neighbour_frames
                )
            loss = 1.0 - cosine + settings.contrast * contrast
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            decay = min(settings.average, (1.0 + state.step) / (10.0 + state.step))
            with torch.no_grad():
                torch._foreach_lerp_(list(average.parameters()), list(student.parameters()), 1.0 - decay)
            state.step += 1
            steps_here += 1
            keep = min(0.98, 1.0 - 1.0 / steps_here)  # a plain mean at first
            loss_mean = keep * loss_mean + (1 - keep) * float(loss.detach())
            cosine_mean = keep * cosine_mean + (1 - keep) * float(cosine.detach())
            now = time.monotonic()
            state.spent_s += now - last
            bar.update(round(state.spent_s) - bar.n)
            bar.set_postfix(step=state.step, loss=f"{loss_mean:.3f}", cosine=f"{cosine_mean:.3f}")
            last = now
            if state.step % settings.evaluate_steps == 0:
                scores = {"held_out_cosine": held_out_cosine(average, sampler, device)}
                line = {"step": state.step, "spent_s": round(state.spent_s, 1), "loss": round(loss_mean, 4)}
                line |= {"cosine": round(cosine_mean, 4), "rate": rate, **scores}
                with (work / LOG_FILE).open("a", encoding="utf-8") as log:
                    log.write(json.dumps(line) + "\n")
                last = time.monotonic()
            if now - saved_at > settings.checkpoint_s:
                save()
                saved_at = last = time.monotonic()
    scores = {"held_out_cosine": held_out_cosine(average, sampler, device)}
    save()
    return scores
