"""Hearings of words for the teacher's tuning: in their sentence, and cut out, in rooms and noise."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.encoder import FRAME_SAMPLES
from model.training.augment import Augmentation, augment
from model.training.data import Pack
from model.training.lowrank import TunedTeacher
from model.training.precision import autocast
from model.training.sound import Noises
from model.training.teacher import WINDOW_FRAMES
from model.training.words import Word

GROUPS = 3  # of views of like length, so that little is padded


@dataclass(frozen=True)
class View:
    """One hearing: `samples` int16 [n * 640], of which frames [at, at + frames) are meant.

    Where it is `changed` it is heard in a room or in noise, each time another.
    """

    samples: npt.NDArray[np.int16]
    at: int
    frames: int
    changed: bool = False

    def faster(self, speed: float) -> View:
        """So many times as fast, and higher by as much, as a shorter speaker would be."""
        at = np.arange(round(len(self.samples) / speed / FRAME_SAMPLES) * FRAME_SAMPLES) * speed
        samples = np.interp(at, np.arange(len(self.samples)), self.samples).astype(np.int16)
        count = len(samples) // FRAME_SAMPLES
        first = min(round(self.at / speed), count - 1)
        return replace(self, samples=samples, at=first, frames=min(max(1, round(self.frames / speed)), count - first))


class Views:
    """Hearings of stretches of a pack, and their embeddings; those that are changed are so as `spec` says."""

    def __init__(self, pack: Pack, spec: Augmentation, device: torch.device, rooms: Tensor | None = None) -> None:
        self.pack, self.spec, self.device, self.rooms = pack, spec, device, rooms
        self.noises = Noises(pack, device)

    def in_sentence(self, word: Word, around: int) -> View:
        """The word with up to `around` frames on each side."""
        return self.stretch(word.recording, word.first, word.frames, around)

    def stretch(self, recording: int, first: int, frames: int, around: int) -> View:
        """Frames [first, first + frames) of a recording with up to `around` frames on each side."""
        low = max(0, first - around)
        high = min(int(self.pack.frames[recording]), first + frames + around)
        samples = self.pack.waveform(recording)[low * FRAME_SAMPLES : high * FRAME_SAMPLES]
        return View(samples, first - low, frames)

    def isolated(self, word: Word) -> View:
        """The word cut out, changed."""
        return replace(self.stretch(word.recording, word.first, word.frames, 0), changed=True)

    def embed(self, tuned: TunedTeacher, views: list[View], rng: np.random.Generator) -> list[Tensor]:
        """Unit embeddings of what is meant in each view: float32 [frames, dim].

        Half of the batches begin at the encoder's first position, as they do later; the others anywhere.
        """
        out: dict[int, Tensor] = {}
        kinds = [[i for i, view in enumerate(views) if view.changed == changed] for changed in (True, False)]
        for kind in kinds:
            order = sorted(kind, key=lambda i: len(views[i].samples))
            for part in np.array_split(np.array(order), min(GROUPS, len(order))) if order else []:
                some = [views[int(i)] for i in part]
                waveform, frames = padded(some, self.device)
                if some[0].changed:
                    waveform = self._changed(waveform, rng)
                position = int(rng.integers(2 * WINDOW_FRAMES)) if rng.random() < 0.5 else 0
                with autocast(self.device):
                    embedded = tuned.embed(waveform, frames, position)
                for row, (i, view) in enumerate(zip(part, some, strict=True)):
                    out[int(i)] = embedded[row, view.at : view.at + view.frames]
        return [out[i] for i in range(len(views))]

    def _changed(self, waveform: Tensor, rng: np.random.Generator) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(int(rng.integers(2**62)))
        noise = self.noises.draw(len(waveform), waveform.shape[1], rng)
        return augment(waveform, noise, self.spec, generator, self.rooms)


def padded(views: list[View], device: torch.device) -> tuple[Tensor, Tensor]:
    """Several views as one: float32 [batch, longest * 640], and how many frames of each are sound, int64 [batch]."""
    out = np.zeros((len(views), max(len(view.samples) for view in views)), np.int16)
    for row, view in zip(out, views, strict=True):
        row[: len(view.samples)] = view.samples
    frames = torch.tensor([len(view.samples) // FRAME_SAMPLES for view in views], device=device)
    return torch.from_numpy(out).to(device).float() / 32767.0, frames
