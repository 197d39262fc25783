"""The segments of a recording with their embeddings, from its chunks in order.

A tokenizer of bounded context gives a frame the same embedding in any stretch that holds the declared context (chunk
invariance). So segments, short and each with a context of its own, are not embedded one by one: the recording is, in
long windows of one length, several at a time where a device likes that, and segments take their frames from those.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import groupby

import numpy as np

from indexer.messages import Part
from indexer.segment import Segment, Segmenter
from model.audio import Samples
from model.tokenizer import Float32, Tokenizer

WINDOW_S = 40.0
ROWS = {"cpu": 1, "cuda": 16}  # windows that are given to the graph at a time


def parts_of(chunks: Iterable[Samples], cutter: Segmenter, tokenizer: Tokenizer) -> Iterator[Part]:
    """Each segment that `cutter` makes of the chunks, with what the tokenizer hears in it."""
    if tokenizer.info.context == "segment":
        for segment in cutter.segments(chunks):
            yield part_of(segment, tokenizer)
        return
    embedder = Embedder(tokenizer, ROWS[tokenizer.device])
    waiting: deque[Segment] = deque()
    for chunk in chunks:
        embedder.take(chunk)
        waiting += cutter.take(chunk)
        yield from _served(waiting, embedder)
    embedder.end()
    waiting += cutter.rest()
    yield from _served(waiting, embedder)


def part_of(segment: Segment, tokenizer: Tokenizer) -> Part:
    """One segment, embedded by itself with the sound around it."""
    embeddings = tokenizer.embed(segment.samples, segment.before, segment.after)
    return Part(segment.start_frame, embeddings, segment.speech)


def _served(waiting: deque[Segment], embedder: Embedder) -> Iterator[Part]:
    """The first segments of those that wait, as far as all their frames are there."""
    while waiting and waiting[0].start_frame + waiting[0].frames <= embedder.frames:
        segment = waiting.popleft()
        yield Part(segment.start_frame, embedder.claim(segment.start_frame, segment.frames), segment.speech)


class Embedder:
    """Embeds one recording. Memory is bounded by `rows` windows with their context, and by what nobody has claimed."""

    def __init__(self, tokenizer: Tokenizer, rows: int = 1, window_s: float = WINDOW_S) -> None:
        self._tokenizer = tokenizer
        self._rows = rows
        self._frame = tokenizer.frame_samples
        self._window = max(1, round(window_s / tokenizer.info.frame_seconds))
        self._left = -(-tokenizer.info.left_context_samples // self._frame)  # frames
        self._right = tokenizer.info.right_context_samples
        self._samples: deque[Samples] = deque()  # from `_origin` on
        self._held = 0  # samples in them
        self._origin = 0  # first frame held
        self._next = 0  # first frame that is not embedded yet
        self._embedded = np.zeros((0, tokenizer.codebook.dim), np.float32)  # from `_first` on
        self._first = 0

    @property
    def frames(self) -> int:
        """Frames embedded so far."""
        return self._next

    def take(self, chunk: Samples) -> None:
        """The recording goes on."""
        self._samples.append(chunk)
        self._held += len(chunk)
        needed = (self._next - self._origin + self._rows * self._window) * self._frame + self._right
        if self._held >= needed:
            self._embed(self._next + self._rows * self._window)

    def end(self) -> None:
        """The recording has ended: what is left is embedded, short of a last frame that is none."""
        self._embed(self._origin + self._held // self._frame)

    def claim(self, start: int, frames: int) -> Float32:
        """Embeddings float32 [frames, dim] from a frame on; those before it are let go."""
        at = start - self._first
        out = self._embedded[at : at + frames]
        self._embedded, self._first = self._embedded[at:], start
        return out

    def _embed(self, stop: int) -> None:
        """Embed all up to a frame."""
        whole = np.concatenate(self._samples) if self._samples else np.zeros(0, np.float32)
        runs: list[tuple[int, int, Samples]] = []  # frames to skip, frames to keep, samples
        for first in range(self._next, stop, self._window):
            last = min(first + self._window, stop)
            low = max(self._origin, first - self._left)
            there = whole[(low - self._origin) * self._frame : (last - self._origin) * self._frame + self._right]
            runs.append((first - low, last - first, there))
        found: list[Float32] = [self._embedded]
        for _, group in groupby(runs, key=lambda run: len(run[2])):
            alike = list(group)
            rows = self._tokenizer.embed_rows(np.stack([samples for _, _, samples in alike]))
            found += [row[skip : skip + keep] for row, (skip, keep, _) in zip(rows, alike, strict=True)]
        self._embedded = np.concatenate(found)
        self._next = stop
        keep_from = max(self._origin, stop - self._left)
        rest = whole[(keep_from - self._origin) * self._frame :].copy()
        self._samples, self._held, self._origin = deque([rest]), len(rest), keep_from
