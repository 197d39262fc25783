"""Word pairs: batches of words said by two speakers, and the losses of Stage I and Stage II on them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.training import losses
from model.training.alignment import warp
from model.training.augment import Augmentation
from model.training.sound import Batch, Plan, Sound
from model.training.words import Groups, LabelSampler, Word

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class PairSettings:
    """What a batch of words holds, and the temperatures of its losses."""

    labels: int = 24  # a batch, each said by two speakers
    same: int = 8  # words a batch that meet themselves, heard in two ways
    row_frames: int = 48  # 1.92 s
    hard: float = 0.4  # share of labels that sound like one already in the batch
    other_languages: float = 0.35  # share of labels from languages without word times
    isolated: float = 0.35  # share of words between silences
    spliced: float = 0.25  # share between stretches of other recordings
    speed: tuple[float, float] = (0.87, 1.15)
    temperature: float = 0.1
    code_temperature: float = 0.1
    sinkhorn_temperature: float = 0.05
    codes: int = 512
    augmentation: Augmentation = field(default_factory=lambda: Augmentation(noise=0.6, room=0.4, gain_db=(-15.0, 5.0)))


@dataclass(frozen=True)
class WordBatch(Batch):
    """Rows of words: row 2 i and 2 i + 1 are the same word.

    `valid` are frames that have a target, word bool [rows, frames] those of the word, label int64 [rows] is the same
    for rows of one label of words.
    """

    word: Tensor
    label: Tensor


class WordSampler:
    """Draws batches of words, each row with the word somewhere in it and around it its sentence, silence or others."""

    def __init__(self, sound: Sound, groups: Groups, timed: frozenset[str], settings: PairSettings) -> None:
        self.sound, self.pack, self.groups, self.settings = sound, sound.pack, groups, settings
        self.labels = LabelSampler(groups, timed, settings.hard, settings.other_languages)
        self.every = [word for label in groups.labels for word in groups.of[label]]

    def draw(self, rng: np.random.Generator) -> WordBatch:
        """One batch."""
        s = self.settings
        pairs = [self.groups.pair(label, rng) for label in self.labels.draw(s.labels, rng)]
        pairs += [(word, word) for word in (self.every[int(rng.integers(len(self.every)))] for _ in range(s.same))]
        plan = Plan(2 * len(pairs), s.row_frames)
        spoken = torch.zeros((2 * len(pairs), s.row_frames), dtype=torch.bool)
        for row in range(len(spoken)):
            at, frames = self._place(pairs[row // 2][row % 2], row, plan, rng)
            spoken[row, at : at + frames] = True
        number: dict[str, int] = {}  # a word that meets itself may be one of another pair too
        label = torch.tensor([number.setdefault(word.label, len(number)) for pair in pairs for word in pair])
        device = self.sound.device
        return WordBatch(**vars(self.sound.render(plan, rng)), word=spoken.to(device), label=label.to(device))

    def _place(self, word: Word, row: int, plan: Plan, rng: np.random.Generator) -> tuple[int, int]:
        """The word's frames in its row: the first, and how many."""
        s, pack = self.settings, self.pack
        speed = float(rng.uniform(*s.speed)) if rng.random() < 0.5 else 1.0
        frames = max(2, min(round(word.frames / speed), s.row_frames))
        at = int(rng.integers(0, s.row_frames - frames + 1))
        first, kind = int(pack.start[word.recording]) + word.first, rng.random()
        low, high = at, at + frames
        if kind >= s.isolated + s.spliced:  # in its sentence, as far as that goes
            low = at - min(at, int(word.first / speed))
            after = int((int(pack.frames[word.recording]) - word.first) / speed) - frames
            high = at + frames + max(0, min(s.row_frames - at - frames, after))
        elif kind >= s.isolated:
            other = int(rng.integers(0, int(pack.frames.sum()) - s.row_frames))
            plan.put(row, 0, other, s.row_frames, taught=False)
        plan.put(row, low, first - round((at - low) * speed), high - low, speed)
        return at, frames


def aligned_pairs(frames: list[Float32]) -> tuple[Tensor, Tensor]:
    """Aligned frames of words laid end to end, word 2 i with word 2 i + 1 and back: anchors and positives, int64."""
    start = np.concatenate([[0], np.cumsum([len(f) for f in frames])])
    anchors, positives = [], []
    for i in range(0, len(frames), 2):
        path = warp(np.ascontiguousarray(frames[i] @ frames[i + 1].T, np.float32))
        anchors += [path[:, 0] + start[i], path[:, 1] + start[i + 1]]
        positives += [path[:, 1] + start[i + 1], path[:, 0] + start[i]]
    return torch.from_numpy(np.concatenate(anchors)), torch.from_numpy(np.concatenate(positives))


class Codes(nn.Module):
    """Unit prototypes [K, dim] that the token losses refer to; `centroids` is normalised on each use."""

    def __init__(self, centroids: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(centroids.clone())

    @property
    def centroids(self) -> Tensor:
        return F.normalize(self.weight, dim=-1)

    def scores(self, embedding: Tensor) -> Tensor:
        """Cosines [n, K]."""
        return embedding @ self.centroids.T

    @torch.no_grad()
    def follow(self, embedding: Tensor, tokens: Tensor, decay: float = 0.99) -> None:
        """Move each used code towards the mean of its frames (VQ-VAE's moving average, van den Oord et al. 2017)."""
        count = torch.bincount(tokens, minlength=len(self.weight)).float()
        mean = torch.zeros_like(self.weight).index_add_(0, tokens, embedding.float())
        used = count > 0
        mean = F.normalize(mean[used], dim=-1)
        self.weight[used] = F.normalize(decay * self.centroids[used] + (1 - decay) * mean, dim=-1)


def ctc_both_ways(scores: list[Tensor], tokens: list[Tensor], temperature: float) -> Tensor:
    """Mean over words of blank-free CTC of each view on the other's collapsed tokens, a frame; infinite ones left out.

    `scores` float32 [frames, K] cosines and `tokens` int64 [frames] of each word, word 2 i paired with 2 i + 1. Where
    none is finite the result is infinite.
    """
    collapsed = [losses.collapse(tokens[i ^ 1]) for i in range(len(tokens))]
    frames = torch.tensor([len(s) for s in scores], device=scores[0].device)
    lengths = torch.tensor([len(c) for c in collapsed], device=scores[0].device)
    log_probability = [F.log_softmax(s.float() / temperature, -1) for s in scores]
    loss = losses.blank_free_ctc(
        nn.utils.rnn.pad_sequence(log_probability, batch_first=True), frames,
        nn.utils.rnn.pad_sequence(collapsed, batch_first=True), lengths,
    ) / frames  # fmt: skip
    finite = torch.isfinite(loss)
    return loss[finite].mean() if finite.any() else loss.mean()
