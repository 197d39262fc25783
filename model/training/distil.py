"""Distillation: batches of running speech and of isolated cuts, with the teacher's features of the same frames."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from model.training.augment import Augmentation
from model.training.losses import frame_contrast
from model.training.precision import autocast
from model.training.sound import Batch, Plan, Sound


@dataclass(frozen=True)
class DistilSettings:
    """What a batch of distillation holds and how it is judged."""

    batch: int = 32
    crop_frames: int = 100  # 4 s
    isolated: float = 0.34  # share of rows made of short cuts between silences
    cut_frames: tuple[int, int] = (8, 30)  # 0.32 to 1.2 s
    speed: tuple[float, float] = (0.87, 1.15)  # of `changed_speed` of the rows
    changed_speed: float = 0.3
    coded: float = 0.08  # share of rows of copies that went through a codec (`model.training.codecs`)
    contrast: float = 0.3  # weight of the frame InfoNCE
    contrast_frames: int = 1_536
    temperature: float = 0.07
    neighbour_frames: int = 4  # frames this close to each other are no negatives
    held_out: float = 0.02  # share of the speech recordings that only measure
    seed: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)


class Sampler:
    """Draws batches: rows of running speech filled from several recordings, and rows of isolated cuts.

    The targets of a cut stay those of the same frames in the full recording.
    """

    def __init__(self, sound: Sound, settings: DistilSettings) -> None:
        self.sound, self.pack, self.settings = sound, sound.pack, settings
        order = np.random.default_rng(settings.seed).permutation(self.pack.recordings("speech"))
        held = max(1, round(len(order) * settings.held_out))
        self.held_out, speech = order[:held], order[held:]
        self.train = np.concatenate([speech, self.pack.recordings("noise")])
        copied = np.array(sorted(set(self.pack.copies) & set(speech.tolist())), np.int64)
        self._pools = [(pool, np.cumsum(self.pack.frames[pool])) for pool in (self.train, copied)]

    def _stretch(
        self, rng: np.random.Generator, copied: bool, low: int, high: int, speed: float
    ) -> tuple[int, int, int | None]:
        """First frame in the pack, how many frames the stretch has at that speed, and where it is heard from."""
        pool, ends = self._pools[copied]
        recording = int(pool[np.searchsorted(ends, rng.integers(ends[-1]), side="right")])
        there = int(self.pack.frames[recording])
        frames = max(1, min(int(rng.integers(low, high + 1)), int(there / speed)))
        spare = max(0, there - int(np.ceil(frames * speed)))
        into = int(rng.integers(0, spare + 1))
        heard_from = self.pack.copies[recording] + into if copied else None
        return int(self.pack.start[recording]) + into, frames, heard_from

    def draw(self, rng: np.random.Generator, rows: int | None = None) -> Batch:
        """One batch of `rows` rows, by default as many as the settings say."""
        s = self.settings
        plan = Plan(s.batch if rows is None else rows, s.crop_frames)
        for row in range(len(plan.source)):
            isolated = rng.random() < s.isolated
            speed = float(rng.uniform(*s.speed)) if rng.random() < s.changed_speed else 1.0
            copied = rng.random() < s.coded and len(self._pools[1][0]) > 0
            at = int(rng.integers(0, 10)) if isolated else 0
            while at < s.crop_frames - 4:
                low, high = s.cut_frames if isolated else (s.crop_frames - at, s.crop_frames - at)
                first, frames, heard_from = self._stretch(rng, copied, low, high, speed)
                frames = min(frames, s.crop_frames - at)
                plan.put(row, at, first, frames, speed, heard_from=heard_from)
                at += frames + (int(rng.integers(5, 20)) if isolated else 0)
        return self.sound.render(plan, rng)


def distil_loss(
    embedding: Tensor, batch: Batch, settings: DistilSettings, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Loss of unit embeddings [batch, frames, dim] against their targets, and the mean cosine."""
    rows, frames, dim = embedding.shape
    device = embedding.device
    valid = batch.valid.reshape(-1)
    target = batch.target.reshape(rows * frames, dim)
    embedding = embedding.reshape(rows * frames, dim)
    cosine = (embedding * target).sum(-1)[valid].mean()
    place = torch.arange(rows * frames, device=device)
    place = place + (place // frames) * settings.neighbour_frames  # rows are no neighbours
    at = valid.nonzero()[:, 0]
    at = at[torch.randperm(len(at), generator=generator, device=device)[: settings.contrast_frames]]
    with autocast(device):
        contrast = frame_contrast(embedding[at], target[at], place[at], settings.temperature, settings.neighbour_frames)
    return 1.0 - cosine + settings.contrast * contrast, cosine
