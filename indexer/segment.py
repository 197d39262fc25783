"""Cuts a stream of samples into segments: at a pause where there is one, with an overlap where there is none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model.audio import Samples

FRAME_SAMPLES = 640  # 40 ms at 16 kHz; a tokenizer of other frames gets as many of them as last as long
LONGEST_FRAMES = 500  # 20 s
EARLIEST_FRAMES = 200  # 8 s: no cut before that
OVERLAP_FRAMES = 50  # 2 s, where no pause was found
SMOOTH_FRAMES = 5  # 200 ms: shorter gaps are stops and breaths inside words
PAUSE_DB = 15.0  # this far below the level of speech it is a pause
SPEECH_DB = 30.0  # further below the level of speech than that, a frame is not counted as speech
FLOOR_DB = -60.0  # of full scale: quieter than that is never speech

Levels = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Segment:
    """A stretch of a recording.

    `samples` float32 [frames * frame samples] from `start_frame` on; `before` (whole frames) and `after` are the
    samples around it, as far as they matter to the tokenizer; `levels` decibels of full scale of each frame.
    """

    start_frame: int
    samples: Samples
    before: Samples
    after: Samples
    levels: Levels

    @property
    def frames(self) -> int:
        """Length in frames."""
        return len(self.levels)

    @property
    def speech(self) -> npt.NDArray[np.bool_]:
        """Which frames are loud enough to be speech: bool [frames]."""
        return np.asarray(self.levels > max(FLOOR_DB, _speech_level(self.levels) - SPEECH_DB))


class Segmenter:
    """Segments of one recording, from its chunks in order. Memory is bounded by segment, context and chunk.

    `left_samples` and `right_samples` are the context that the tokenizer asks for.
    """

    def __init__(self, left_samples: int = 0, right_samples: int = 0, frame_samples: int = FRAME_SAMPLES) -> None:
        self.frame_samples = frame_samples
        self.left_samples = -(-left_samples // frame_samples) * frame_samples
        self.right_samples = right_samples
        self.total_samples = 0  # read so far
        self._longest = _frames(LONGEST_FRAMES, frame_samples)
        self._overlap = min(_frames(OVERLAP_FRAMES, frame_samples), self._longest - 1)  # so that it goes on
        self._held = np.zeros(0, np.float32)  # from `_origin` on
        self._origin = 0  # first frame held
        self._start = 0  # first frame of the next segment

    def segments(self, chunks: Iterable[Samples]) -> Iterator[Segment]:
        """Cut the recording. Nothing is yielded for less than one frame."""
        for chunk in chunks:
            yield from self.take(chunk)
        yield from self.rest()

    def take(self, chunk: Samples) -> list[Segment]:
        """The recording goes on: segments that are final by now, whatever comes."""
        self.total_samples += len(chunk)
        self._held = np.concatenate([self._held, chunk])
        out: list[Segment] = []
        frame = self.frame_samples
        needed = self._longest * frame + max(self.right_samples, frame)
        while len(self._held) - (self._start - self._origin) * frame >= needed:
            first = (self._start - self._origin) * frame
            levels = frame_levels(self._held[first : first + self._longest * frame], frame)
            cut = find_pause(levels, frame)
            length = self._longest if cut is None else cut
            out.append(self._segment(self._start, levels[:length]))
            self._start += length - (self._overlap if cut is None else 0)
            keep = max(0, (self._start - self._origin) * frame - self.left_samples)
            self._held, self._origin = self._held[keep:].copy(), self._origin + keep // frame
        return out

    def rest(self) -> Iterator[Segment]:
        """The last segments, where the recording ends with what has been taken; it may go on all the same."""
        # What is left is a little longer than one segment at most: cut on until it is used up.
        start, frame = self._start, self.frame_samples
        while (frames := (len(self._held) - (start - self._origin) * frame) // frame) > 0:
            first = (start - self._origin) * frame
            levels = frame_levels(self._held[first : first + min(frames, self._longest) * frame], frame)
            cut = find_pause(levels, frame) if frames > self._longest else None
            length = min(frames, self._longest) if cut is None else cut
            yield self._segment(start, levels[:length])
            if length == frames:
                return
            start += length - (self._overlap if cut is None else 0)

    def _segment(self, start: int, levels: Levels) -> Segment:
        first = (start - self._origin) * self.frame_samples
        last = first + len(levels) * self.frame_samples
        return Segment(
            start, self._held[first:last], self._held[max(0, first - self.left_samples) : first],
            self._held[last : last + self.right_samples], levels,
        )  # fmt: skip


def frame_levels(samples: Samples, frame_samples: int = FRAME_SAMPLES) -> Levels:
    """Level of each whole frame in decibels of full scale: float32 [frames]."""
    frames = samples[: len(samples) // frame_samples * frame_samples].reshape(-1, frame_samples)
    power = np.einsum("ij,ij->i", frames, frames) / frame_samples
    return np.asarray(10.0 * np.log10(power + 1e-10), np.float32)


def find_pause(levels: Levels, frame_samples: int = FRAME_SAMPLES) -> int | None:
    """The frame in the middle of the quietest pause from 8 s on, or None where nobody pauses."""
    earliest, width = _frames(EARLIEST_FRAMES, frame_samples), _frames(SMOOTH_FRAMES, frame_samples)
    if len(levels) < earliest + width:
        return None
    power = 10.0 ** (levels / 10.0)
    smooth = 10.0 * np.log10(np.convolve(power, np.ones(width) / width, mode="valid") + 1e-10)  # [i]: at i + width // 2
    search = smooth[earliest:]
    lowest = float(search.min())
    if lowest > max(FLOOR_DB, _speech_level(levels) - PAUSE_DB):
        return None
    # All that is about as quiet as the quietest place: the middle of its longest run, the later one of equals.
    quiet = np.concatenate([[False], search <= lowest + 3.0, [False]])
    edges = np.flatnonzero(quiet[1:] != quiet[:-1]).reshape(-1, 2)
    run = edges[len(edges) - 1 - int(np.argmax((edges[:, 1] - edges[:, 0])[::-1]))]
    return earliest + int(run.sum() - 1) // 2 + width // 2


def _frames(frames: int, frame_samples: int) -> int:
    """How many frames of so many samples last as long as `frames` of 40 ms."""
    return max(1, frames * FRAME_SAMPLES // frame_samples)


def _speech_level(levels: Levels) -> float:
    return float(np.percentile(levels, 90.0)) if len(levels) else FLOOR_DB
