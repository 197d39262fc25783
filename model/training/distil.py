"""Distillation: batches of running speech and of isolated cuts, with the teacher's features of the same frames."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.encoder import FRAME_SAMPLES
from model.training.augment import Augmentation
from model.training.codecs import available, coded
from model.training.data import Pack
from model.training.losses import frame_contrast
from model.training.precision import autocast


@dataclass(frozen=True)
class DistilSettings:
    """What a batch of distillation holds and how it is judged."""

    batch: int = 32
    crop_frames: int = 100  # 4 s
    isolated: float = 0.34  # share of rows made of short cuts between silences
    cut_frames: tuple[int, int] = (8, 30)  # 0.32 to 1.2 s
    speed: tuple[float, float] = (0.87, 1.15)  # of `changed_speed` of the rows
    changed_speed: float = 0.3
    coded: float = 0.08  # share of rows that went through a codec (`model.training.codecs`)
    contrast: float = 0.3  # weight of the frame InfoNCE
    contrast_frames: int = 1_536
    temperature: float = 0.07
    neighbour_frames: int = 4  # frames this close to each other are no negatives
    held_out: float = 0.02  # share of the speech recordings that only measure
    seed: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)


@dataclass(frozen=True)
class Batch:
    """Waveform and noise float32 [batch, samples], target float32 [batch, frames, dim], valid bool [batch, frames]."""

    waveform: Tensor
    noise: Tensor
    target: Tensor
    valid: Tensor


class Cutter:
    """Cuts stretches of a pack, at another speed if asked, with the targets of their frames."""

    def __init__(self, pack: Pack, targets: npt.NDArray[np.float16]) -> None:
        self.pack, self.targets = pack, targets
        self.noises = pack.recordings("noise")

    def cut(self, first: int, frames: int, speed: float = 1.0) -> npt.NDArray[np.float32]:
        """Samples float32 [frames * 640] from frame `first` of the pack on, of a stretch `frames` * speed long.

        A speed above one is faster and higher, as a shorter speaker would be.
        """
        start, count = first * FRAME_SAMPLES, frames * FRAME_SAMPLES
        if speed == 1.0:
            return self.pack.samples[start : start + count].astype(np.float32) / 32767.0
        source = self.pack.samples[start : start + round(count * speed) + 1].astype(np.float32) / 32767.0
        at = np.minimum(np.arange(count) * speed, len(source) - 1.001)
        whole = at.astype(np.int64)
        part = (at - whole).astype(np.float32)
        return np.asarray(source[whole] * (1 - part) + source[whole + 1] * part, np.float32)

    def target(self, first: int, frames: int, speed: float = 1.0) -> Tensor:
        """Unit targets float32 [frames, dim] of the same stretch."""
        at = first + ((np.arange(frames) + 0.5) * speed).astype(np.int64)
        return torch.from_numpy(self.targets[np.minimum(at, len(self.targets) - 1)].astype(np.float32))

    def noise(self, samples: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
        """A stretch of noise float32 [samples], or silence where the pack has none."""
        if not len(self.noises):
            return np.zeros(samples, np.float32)
        source = self.pack.waveform(int(rng.choice(self.noises)))
        shift = int(rng.integers(0, max(1, len(source))))
        return np.resize(np.roll(source, -shift), samples).astype(np.float32) / 32767.0


class Sampler:
    """Draws batches: rows of running speech filled from several recordings, and rows of isolated cuts.

    `targets` float16 [frames of the pack, dim], unit. The targets of a cut stay those of the same frames in the full
    recording.
    """

    def __init__(self, pack: Pack, targets: npt.NDArray[np.float16], settings: DistilSettings) -> None:
        self.pack, self.targets, self.settings = pack, targets, settings
        self.cutter = Cutter(pack, targets)
        self.codings = available() if settings.coded else []
        order = np.random.default_rng(settings.seed).permutation(pack.recordings("speech"))
        held = max(1, round(len(order) * settings.held_out))
        self.held_out, speech = order[:held], order[held:]
        self.train = np.concatenate([speech, pack.recordings("noise")])
        weights = pack.frames[self.train].astype(np.float64)
        self.weights = weights / weights.sum()

    def _stretch(self, rng: np.random.Generator, low: int, high: int, speed: float) -> tuple[int, int]:
        """First frame in the pack, and how many frames the stretch has at that speed."""
        recording = int(rng.choice(self.train, p=self.weights))
        there = int(self.pack.frames[recording])
        frames = max(1, min(int(rng.integers(low, high + 1)), int(there / speed)))
        spare = max(0, there - int(np.ceil(frames * speed)))
        return int(self.pack.start[recording]) + int(rng.integers(0, spare + 1)), frames

    def draw(self, rng: np.random.Generator, rows: int | None = None) -> Batch:
        """One batch of `rows` rows, by default as many as the settings say."""
        s = self.settings
        rows = s.batch if rows is None else rows
        samples = s.crop_frames * FRAME_SAMPLES
        waveform = np.zeros((rows, samples), np.float32)
        noise = np.zeros((rows, samples), np.float32)
        target = torch.zeros((rows, s.crop_frames, self.targets.shape[1]))
        valid = torch.zeros((rows, s.crop_frames), dtype=torch.bool)
        for row in range(rows):
            isolated = rng.random() < s.isolated
            speed = float(rng.uniform(*s.speed)) if rng.random() < s.changed_speed else 1.0
            at = int(rng.integers(0, 10)) if isolated else 0
            while at < s.crop_frames - 4:
                low, high = s.cut_frames if isolated else (s.crop_frames - at, s.crop_frames - at)
                first, frames = self._stretch(rng, low, high, speed)
                frames = min(frames, s.crop_frames - at)
                waveform[row, at * FRAME_SAMPLES : (at + frames) * FRAME_SAMPLES] = self.cutter.cut(
                    first, frames, speed
                )
                target[row, at : at + frames] = self.cutter.target(first, frames, speed)
                valid[row, at : at + frames] = True
                at += frames + (int(rng.integers(5, 20)) if isolated else 0)
            if self.codings and rng.random() < s.coded:
                coding = self.codings[int(rng.integers(len(self.codings)))]
                waveform[row] = coded(waveform[row], coding, int(rng.choice(coding.bit_rates)))
            noise[row] = self.cutter.noise(samples, rng)
        white = 1e-4 * 10 ** rng.uniform(-1, 1, (rows, 1)).astype(np.float32)
        waveform += white * rng.standard_normal(waveform.shape, dtype=np.float32)
        return Batch(torch.from_numpy(waveform), torch.from_numpy(noise), target, valid)


def distil_loss(
    embedding: Tensor, batch: Batch, settings: DistilSettings, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Loss of unit embeddings [batch, frames, dim] against their targets, and the mean cosine."""
    rows, frames, dim = embedding.shape
    device = embedding.device
    valid = batch.valid.reshape(-1).to(device)
    target = batch.target.reshape(rows * frames, dim).to(device)
    embedding = embedding.reshape(rows * frames, dim)
    cosine = (embedding * target).sum(-1)[valid].mean()
    place = torch.arange(rows * frames, device=device)
    place = place + (place // frames) * settings.neighbour_frames  # rows are no neighbours
    at = valid.nonzero()[:, 0]
    at = at[torch.randperm(len(at), generator=generator, device=device)[: settings.contrast_frames]]
    with autocast(device):
        contrast = frame_contrast(embedding[at], target[at], place[at], settings.temperature, settings.neighbour_frames)
    return 1.0 - cosine + settings.contrast * contrast, cosine
