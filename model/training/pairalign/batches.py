"""What the decoder is shown: a stretch that it hears, and the tokens that another hearing of it has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Many
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.pairalign.shape import DecoderShape
from model.training.pairalign.hearings import Hearings
from model.training.pairalign.targets import PRICES, Ids, Sequence, collapsed, moved

SHORTEST_FRAMES = 6
WHOLE = 0.7  # share of running stretches that fill a window

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Example:
    """Two hearings of one stretch: `heard` [n, dim] is the condition, `other` [m, dim] the paired one.

    `sequence` has the tokens of `other` at the times of `heard`; `word` is true where two speakers say it.
    """

    heard: Float32
    other: Float32
    sequence: Sequence
    rate: int
    word: bool = False

    def at_my_times(self, sequence: Sequence) -> Sequence:
        """A sequence of `other` at the times of `heard`."""
        return moved(sequence, self.heard, self.other) if self.word else sequence


@dataclass(frozen=True, eq=False)
class Batch:
    """Padded: `heard` [batch, frames, dim], `frames`, `rate` int64 [batch]; `entered` and `entered_at` int64 [batch,
    steps] are BOS and the tokens with their frames, `wanted` the tokens and EOS, `pointed` the frames of the tokens;
    -100 where there is nothing to predict."""  # fmt: skip

    heard: Tensor
    frames: Tensor
    rate: Tensor
    entered: Tensor
    entered_at: Tensor
    wanted: Tensor
    pointed: Tensor


def padded(rows: Many[Float32], frames: int) -> tuple[Tensor, Tensor]:
    """Stretches in one tensor float32 [batch, frames, dim], and their lengths."""
    out = np.zeros((len(rows), frames, rows[0].shape[1]), np.float32)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return torch.from_numpy(out), torch.tensor([len(row) for row in rows])


def collate(heard: Many[Float32], sequences: Many[Sequence], rates: Many[int], shape: DecoderShape) -> Batch:
    """One batch; sequences longer than the decoder writes lose their end, and then have no EOS to learn."""
    rows, frames = padded(heard, max(len(h) for h in heard))
    steps = min(shape.max_tokens, max(len(s.tokens) for s in sequences)) + 1
    entered = np.full((len(heard), steps), shape.bos, np.int64)
    at = np.zeros((len(heard), steps), np.int64)
    wanted, pointed = np.full_like(entered, -100), np.full_like(entered, -100)
    for i, s in enumerate(sequences):
        n = min(len(s.tokens), shape.max_tokens)
        entered[i, 1 : n + 1], at[i, 1 : n + 1] = s.tokens[:n], s.starts[:n]
        wanted[i, :n], pointed[i, 1:n] = s.tokens[:n], s.starts[1:n]
        if n == len(s.tokens):
            wanted[i, n] = shape.bos
    return Batch(rows, frames, torch.tensor(rates), *(torch.from_numpy(x) for x in (entered, at, wanted, pointed)))


@dataclass(frozen=True)
class Mixture:
    """Shares of a batch: running speech as it was recorded, running speech changed, stretches heard alone; the rest
    are words by two speakers."""  # fmt: skip

    clean: float
    changed: float
    alone: float


class Examples:
    """Draws examples of a corpus. `ids` uint16 [prices, frames of the pack] are its tokens."""

    def __init__(self, hearings: Hearings, ids: Ids, shape: DecoderShape) -> None:
        self.hearings, self.ids, self.shape = hearings, ids, shape
        frames = hearings.pack.frames[hearings.chosen]
        long = frames >= SHORTEST_FRAMES
        self.recordings, self.share = hearings.chosen[long], frames[long] / frames[long].sum()
        of: dict[str, list[int]] = {}
        for number, cut in enumerate(hearings.cuts):
            of.setdefault(cut.label, []).append(number)
        self.of = {
            label: numbers for label, numbers in of.items()
            if len({hearings.cuts[i].speaker for i in numbers}) > 1 and not label.startswith("~")
        }  # fmt: skip
        self.labels = sorted(self.of)
        self.chances = fair([label.split("/")[0] for label in self.labels])

    def draw(self, count: int, mixture: Mixture, rng: np.random.Generator) -> list[Example]:
        """So many examples."""
        out: list[Example] = []
        while len(out) < count:
            kind, rate = rng.random(), int(rng.integers(len(PRICES)))
            if kind < mixture.clean:
                out.append(self.running(0, rate, rng))
            elif kind < mixture.clean + mixture.changed:
                out.append(self.running(int(rng.integers(1, len(self.hearings.views))), rate, rng))
            elif kind < mixture.clean + mixture.changed + mixture.alone or not self.labels:
                out.append(self.alone(int(rng.integers(len(self.hearings.cuts))), rate))
            else:
                out.append(self.word(rate, rng))
        return out

    def running(self, view: int, rate: int, rng: np.random.Generator) -> Example:
        """A stretch of a recording in one of its views, paired with the recording as it is."""
        h, window = self.hearings, self.shape.window_frames
        recording = int(rng.choice(self.recordings, p=self.share))
        frames = window if rng.random() < WHOLE else int(rng.integers(SHORTEST_FRAMES, window + 1))
        frames = min(frames, int(h.pack.frames[recording]))
        first = int(h.pack.start[recording]) + int(rng.integers(int(h.pack.frames[recording]) - frames + 1))
        span = slice(first, first + frames)
        return Example(_unit(h.views[view][span]), _unit(h.views[0][span]), collapsed(self.ids[rate, span]), rate)

    def alone(self, number: int, rate: int) -> Example:
        """A stretch heard by itself, paired with itself in its recording."""
        span = self._span(number)
        heard = _unit(self.hearings.cut(number)[: self.shape.window_frames])
        return Example(heard, _unit(self.hearings.views[0][span]), collapsed(self.ids[rate, span]), rate)

    def word(self, rate: int, rng: np.random.Generator) -> Example:
        """A word by one speaker, alone or in its sentence, paired with the same word by another."""
        numbers = self.of[self.labels[int(rng.choice(len(self.labels), p=self.chances))]]
        first = numbers[int(rng.integers(len(numbers)))]
        cuts = self.hearings.cuts
        others = [n for n in numbers if cuts[n].speaker != cuts[first].speaker]
        other = self._span(others[int(rng.integers(len(others)))])
        alone = rng.random() < 0.5
        mine = _unit(self.hearings.cut(first) if alone else self.hearings.views[0][self._span(first)])
        its = _unit(self.hearings.views[0][other])
        return Example(mine, its, moved(collapsed(self.ids[rate, other]), mine, its), rate, word=True)

    def _span(self, number: int) -> slice:
        cut = self.hearings.cuts[number]
        first = int(self.hearings.pack.start[cut.recording]) + cut.first
        return slice(first, first + min(cut.frames, self.shape.window_frames))


def fair(languages: Many[str]) -> npt.NDArray[np.float64]:
    """The chance of each label: alike, but no language has more than all others together."""
    counts = Counter(languages)
    most, total = max(counts.values(), default=0), len(languages)
    if most == total or 2 * most <= total:
        return np.full(total, 1.0 / max(1, total))
    return np.array([0.5 / (most if counts[name] == most else total - most) for name in languages])


def _unit(rows: npt.NDArray[np.float16]) -> Float32:
    x = rows.astype(np.float32)
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-6), np.float32)
