"""Hearings of words, as rows of what the teacher's lower blocks give: in their sentence, and isolated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.training.data import Pack
from model.training.lowrank import TunedTeacher
from model.training.precision import autocast
from model.training.teacher import WIDTH
from model.training.words import Word


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
        return self.stretch(word.recording, word.first, word.frames, around)

    def stretch(self, recording: int, first: int, frames: int, around: int) -> View:
        """Frames [first, first + frames) of a recording with up to `around` frames on each side."""
        low = max(0, first - around)
        high = min(int(self.pack.frames[recording]), first + frames + around)
        start = int(self.pack.start[recording])
        return View(self.lower[start + low : start + high].reshape(-1, WIDTH), first - low, frames)

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


def embed_views(tuned: TunedTeacher, views: list[View], device: torch.device, groups: int = 3) -> list[Tensor]:
    """Embeddings of each view, padding included; views of like length go together, so that little is padded."""
    order = sorted(range(len(views)), key=lambda i: len(views[i].rows))
    out: dict[int, Tensor] = {}
    for part in np.array_split(np.array(order), min(groups, len(order))):
        rows, lengths = padded([views[int(i)] for i in part], device)
        with autocast(device):
            embedded = tuned.embed(rows, lengths)
        out |= {int(i): embedded[k] for k, i in enumerate(part)}
    return [out[i] for i in range(len(views))]
