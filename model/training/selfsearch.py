"""Pairs that a student finds itself: it searches recordings for stretches of each other, within a budget of time."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from model.encoder import FRAME_SECONDS
from model.training import mining
from model.training.data import Pack
from model.training.embedding import embed_recordings
from model.training.student import Student
from model.training.words import Word

SEARCHED_HOURS = 1.0  # at a time: twice the sound costs twice the time for few more pairs
EXCERPT_FRAMES = 15_000  # 10 min of one recording at most, so that an hour has several
TRIAL_QUERIES, LEAST_QUERIES = 20, 100
QUERIES_PER_PAIR = 4  # of the pairs wanted, at most

Int64 = npt.NDArray[np.int64]


def find_pairs(
    student: Student, pack: Pack, recordings: Int64, device: torch.device, *, budget_s: float, most: int, seed: int
) -> list[Word]:
    """Mutual nearest stretches of different `recordings`, at most `most` pairs, best first, each two words long.

    An hour at most is searched; how many stretches are looked for follows from `budget_s` and the machine's speed.
    Words are numbered as in `pack`.
    """
    searched = _excerpts(pack, recordings, seed)
    every = np.arange(len(searched.entries))
    embeddings = embed_recordings(student, searched, every.tolist(), device)
    started = time.monotonic()
    mining.by_sound(searched, every, embeddings, queries=TRIAL_QUERIES, seed=seed)
    each_s = (time.monotonic() - started) / TRIAL_QUERIES
    queries = int(np.clip(budget_s / max(each_s, 1e-6), LEAST_QUERIES, QUERIES_PER_PAIR * most))
    found = mining.by_sound(searched, every, embeddings, queries=queries, most=most, seed=seed)
    return shifted(found, searched, pack)


def _excerpts(pack: Pack, recordings: Int64, seed: int) -> Pack:
    """A part of some recordings, an hour in all, each an entry of its own."""
    rng = np.random.default_rng(seed)
    start: list[int] = []
    frames: list[int] = []
    chosen: list[int] = []
    left = round(SEARCHED_HOURS * 3600 / FRAME_SECONDS)
    for recording in rng.permutation(recordings).tolist():
        there = int(pack.frames[recording])
        size = min(there, EXCERPT_FRAMES, left)
        if size == 0:
            break
        chosen.append(recording)
        start.append(int(pack.start[recording]) + int(rng.integers(0, there - size + 1)))
        frames.append(size)
        left -= size
    entries = [pack.entries[recording] for recording in chosen]
    return Pack(pack.samples, np.array(start, np.int64), np.array(frames, np.int64), entries)


def shifted(words: list[Word], source: Pack, to: Pack) -> list[Word]:
    """The pairs in `words`, numbered as in another division of the same samples; one that is cut in two is left out.

    `to` is in the order of its samples. Pairs stay one word after the other.
    """
    out: list[Word] = []
    for pair in zip(words[::2], words[1::2], strict=True):
        moved = []
        for word in pair:
            first = int(source.start[word.recording]) + word.first
            there = int(np.searchsorted(to.start, first, "right")) - 1
            if there >= 0 and first + word.frames <= int(to.start[there] + to.frames[there]):
                moved.append(replace(word, recording=there, first=first - int(to.start[there])))
        if len(moved) == 2:
            out += moved
    return out


def pieces(pack: Pack, frames: int) -> Pack:
    """The same samples with recordings longer than `frames` cut into several entries."""
    cuts = [
        (i, int(start) + at, min(frames, int(there) - at))
        for i, (start, there) in enumerate(zip(pack.start, pack.frames, strict=True))
        for at in range(0, int(there), frames)
    ]
    return Pack(
        pack.samples,
        np.array([start for _, start, _ in cuts], np.int64),
        np.array([size for _, _, size in cuts], np.int64),
        [pack.entries[i] for i, _, _ in cuts],
    )
