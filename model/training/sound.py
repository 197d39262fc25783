"""Batches of sound made where they are used: the whole pack lies on the device, and a plan says what goes where."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.encoder import FRAME_SAMPLES
from model.training.data import Pack

WHITE = 1e-4  # of a microphone: its level, give or take a factor of ten
SILENT = -1


@dataclass(frozen=True)
class Batch:
    """Waveform and noise float32 [batch, samples], target float32 [batch, frames, dim], valid bool [batch, frames]."""

    waveform: Tensor
    noise: Tensor
    target: Tensor
    valid: Tensor


class Plan:
    """What goes where in a batch of rows, frame by frame.

    `source` float64 [rows, frames] is the sample of the pack at which a frame begins, `speed` float32 how fast it goes
    on from there, `target` int64 the pack's frame whose target it has; -1 for silence, and for no target.
    """

    def __init__(self, rows: int, frames: int) -> None:
        self.source = np.full((rows, frames), SILENT, np.float64)
        self.speed = np.ones((rows, frames), np.float32)
        self.target = np.full((rows, frames), SILENT, np.int64)

    def put(
        self, row: int, at: int, first: int, frames: int, speed: float = 1.0, *, heard_from: int | None = None,
        taught: bool = True,
    ) -> None:  # fmt: skip
        """Frame `first` of the pack and those after it into frames [at, at + frames) of a row, `speed` times as fast.

        A speed above one is faster and higher, as a shorter speaker would be. With `heard_from` the sound is that from
        another frame on (a copy), with the same targets; they are left out where the row is not `taught` by them.
        """
        step = np.arange(frames)
        to = slice(at, at + frames)
        self.source[row, to] = ((first if heard_from is None else heard_from) + step * speed) * FRAME_SAMPLES
        self.speed[row, to] = speed
        if taught:
            self.target[row, to] = first + ((step + 0.5) * speed).astype(np.int64)


class Noises:
    """The noise of a pack on a device."""

    def __init__(self, pack: Pack, device: torch.device) -> None:
        self.device = device
        recordings = pack.recordings("noise")
        self.lengths = pack.frames[recordings] * FRAME_SAMPLES
        self.starts = np.cumsum(self.lengths) - self.lengths
        parts = [pack.waveform(int(recording)) for recording in recordings]
        self.samples = torch.from_numpy(np.concatenate(parts)).to(device) if parts else None

    def draw(self, rows: int, samples: int, rng: np.random.Generator) -> Tensor:
        """Stretches of noise, which go round: float32 [rows, samples]; silence where there is none."""
        if self.samples is None:
            return torch.zeros(rows, samples, device=self.device)
        which = rng.integers(len(self.starts), size=rows)
        start, length, shift = (
            torch.from_numpy(x)[:, None].to(self.device)
            for x in (self.starts[which], self.lengths[which], rng.integers(self.lengths[which]))
        )
        at = start + (shift + torch.arange(samples, device=self.device)) % length
        return self.samples[at].float() / 32767.0


class Sound:
    """A pack's sound and `targets` float16 [frames, dim] on a device; on the CPU they stay in their files."""

    def __init__(self, pack: Pack, targets: npt.NDArray[np.float16], device: torch.device) -> None:
        self.pack, self.device = pack, device
        self.samples = torch.from_numpy(pack.samples).to(device)
        self.targets = torch.from_numpy(targets).to(device)
        self.noises = Noises(pack, device)

    def render(self, plan: Plan, rng: np.random.Generator) -> Batch:
        """The sound of a plan with a microphone's white noise, and noise of the pack to be added to it."""
        rows, frames = plan.source.shape
        waveform = self._heard(plan)
        generator = torch.Generator(self.device).manual_seed(int(rng.integers(2**62)))
        white = WHITE * 10 ** torch.from_numpy(rng.uniform(-1, 1, (rows, 1)).astype(np.float32)).to(self.device)
        waveform += white * torch.randn(waveform.shape, generator=generator, device=self.device)
        target = torch.from_numpy(plan.target).to(self.device)
        valid = target >= 0
        taught = self.targets[target.clamp(0, len(self.targets) - 1)].float() * valid[..., None]
        return Batch(waveform, self.noises.draw(rows, frames * FRAME_SAMPLES, rng), taught, valid)

    def _heard(self, plan: Plan) -> Tensor:
        """Float32 [rows, samples], between two samples on the straight line."""
        source = torch.from_numpy(plan.source).to(self.device)[..., None]
        speed = torch.from_numpy(plan.speed).to(self.device)[..., None]
        first = source.floor()
        along = torch.arange(FRAME_SAMPLES, device=self.device) * speed + (source - first).float()
        whole = along.floor()
        last = len(self.samples) - 1
        at = (first.long() + whole.long()).clamp(0, last)
        part = along - whole
        out = self.samples[at].float() * (1 - part)
        if (plan.speed != 1.0).any():
            out += self.samples[(at + 1).clamp(max=last)].float() * part
        return (out * (source >= 0) / 32767.0).flatten(1)
