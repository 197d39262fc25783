"""What the frozen encoder makes of a corpus: in quiet, in rooms and noise, and of stretches that are heard alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from model.encoder import FRAME_SAMPLES
from model.tokenizer import Tokenizer
from model.training import mining
from model.training.augment import Augmentation, augment
from model.training.data import Entry, Pack
from model.training.tuning import random_cuts
from model.training.words import Groups, Word

VIEWS = 2  # of each recording; the first is as it was recorded
WORDS, CUTS = 18_000, 6_000  # at most, that are heard alone
JOURNAL_EVERY = 500  # recordings

Float16 = npt.NDArray[np.float16]
Samples = npt.NDArray[np.int16]


@dataclass(frozen=True, eq=False)
class Hearings:
    """Unit embeddings of the chosen recordings, float16.

    `views` [views, frames of the pack, dim], of the first a recording as it is; `alone` [total, dim] of the stretches
    `cuts` by themselves, in a room or noise now and then, one after another from `start`.
    """

    pack: Pack
    chosen: npt.NDArray[np.int64]
    views: list[Float16]
    cuts: list[Word]
    alone: Float16
    start: npt.NDArray[np.int64]

    def cut(self, number: int) -> Float16:
        """Embeddings of one of the cuts, heard alone."""
        return self.alone[self.start[number] : self.start[number] + self.cuts[number].frames]


def choose(pack: Pack, groups: Groups | None, hours: float, seed: int = 0) -> npt.NDArray[np.int64]:
    """Recordings of speech, up to so many hours: half of the time those with words, the rest by chance."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(pack.recordings("speech"))
    limit = hours * 3600 * 25
    chosen: list[int] = []
    if groups is not None:
        spoken = {word.recording for label in groups.labels for word in groups.of[label]}
        first = [int(r) for r in order if int(r) in spoken]
        chosen = first[: int(np.searchsorted(np.cumsum(pack.frames[first]), limit / 2)) + 1] if first else []
    rest = [int(r) for r in order if int(r) not in set(chosen)]
    left = limit - pack.frames[chosen].sum()
    chosen += rest[: int(np.searchsorted(np.cumsum(pack.frames[rest]), left)) + 1]
    return np.sort(np.array(chosen, np.int64))


def hear(
    tokenizer: Tokenizer, pack: Pack, groups: Groups | None, work: Path, hours: float, rooms: Tensor | None,
    seed: int = 0, texts: dict[int, str] | None = None, excluded: frozenset[str] = frozenset(),
) -> Hearings:  # fmt: skip
    """Embeddings of the corpus in `work`; what is there already is not made again.

    `texts` are transcripts of recordings without word times, by number: words that two of one language share, but for
    `excluded` ones, are found by their sound and serve beside `groups`.
    """
    chosen = choose(pack, groups, hours, seed)
    spec = Augmentation(noise=0.7, room=0.4)
    views = []
    for number in range(VIEWS):
        changed = _changer(pack, spec, seed + number, rooms) if number else pack.waveform
        views.append(_embedded(tokenizer, pack, chosen, changed, work / f"view-{number}.f16"))
    words = [] if groups is None else [word for label in groups.labels for word in groups.of[label]]
    words += _found(pack, views[0], {} if texts is None else texts, chosen, excluded)
    cuts = _cuts(pack, words, chosen, seed)
    start = np.cumsum([0, *(cut.frames for cut in cuts)])
    path = work / "alone.f16"
    if _done(path) == len(cuts):
        kept = np.memmap(path, np.float16, "r", shape=(int(start[-1]), tokenizer.codebook.dim))
        return Hearings(pack, chosen, views, cuts, kept, start[:-1])
    alone = isolated_pack(pack, cuts, Augmentation(noise=0.4, room=0.3), seed, rooms)
    made = _embedded(tokenizer, alone, np.arange(len(cuts)), alone.waveform, path)
    return Hearings(pack, chosen, views, cuts, made, start[:-1])


def _found(
    pack: Pack, view: Float16, texts: dict[int, str], chosen: npt.NDArray[np.int64], excluded: frozenset[str]
) -> list[Word]:
    def embed(recording: int) -> npt.NDArray[np.float32]:
        start = int(pack.start[recording])
        return view[start : start + int(pack.frames[recording])].astype(np.float32)

    inside = set(chosen.tolist())
    theirs = {recording: text for recording, text in texts.items() if recording in inside}
    return list(dict.fromkeys(mining.from_texts(pack, theirs, embed, excluded=excluded)))


def _cuts(pack: Pack, every: list[Word], chosen: npt.NDArray[np.int64], seed: int) -> list[Word]:
    rng = np.random.default_rng(seed)
    inside = set(chosen.tolist())
    words = [word for word in every if word.recording in inside]
    if len(words) > WORDS:
        words = [words[int(i)] for i in np.sort(rng.choice(len(words), WORDS, replace=False))]
    return words + [cut for cut in random_cuts(pack, 2 * CUTS, seed) if cut.recording in inside][:CUTS]


def isolated_pack(
    pack: Pack, words: list[Word], spec: Augmentation, seed: int = 0, rooms: Tensor | None = None
) -> Pack:
    """Each word cut out of its recording, in a room and in noise: a pack of its own, one recording a word."""
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    noises = pack.recordings("noise")
    parts: list[npt.NDArray[np.int16]] = []
    for word in tqdm(words, "isolated", unit="word"):
        first = (int(pack.start[word.recording]) + word.first) * FRAME_SAMPLES
        cut = np.asarray(pack.samples[first : first + word.frames * FRAME_SAMPLES], np.float32) / 32767.0
        noise = np.zeros_like(cut)
        if len(noises):
            source = pack.waveform(int(rng.choice(noises)))
            noise = np.resize(np.roll(source, -int(rng.integers(len(source)))), len(cut)).astype(np.float32) / 32767.0
        changed = augment(torch.from_numpy(cut)[None], torch.from_numpy(noise)[None], spec, generator, rooms)[0].numpy()
        parts.append(np.round(changed * 32767.0).astype(np.int16))
    frames = np.array([word.frames for word in words], np.int64)
    entries = [Entry("", word.label.split("/")[0], word.speaker, "speech") for word in words]
    return Pack(np.concatenate(parts), np.concatenate([[0], np.cumsum(frames)[:-1]]), frames, entries)


def _changer(pack: Pack, spec: Augmentation, seed: int, rooms: Tensor | None) -> Callable[[int], Samples]:
    noises = pack.recordings("noise")

    def changed(recording: int) -> Samples:
        rng = np.random.default_rng((seed, recording))
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        samples = pack.waveform(recording).astype(np.float32) / 32767.0
        noise = rng.standard_normal(len(samples)).astype(np.float32)
        if len(noises):
            source = pack.waveform(int(rng.choice(noises)))
            noise = np.resize(np.roll(source, -int(rng.integers(len(source)))), len(samples)).astype(np.float32)
        out = augment(torch.from_numpy(samples)[None], torch.from_numpy(noise)[None] / 32767.0, spec, generator, rooms)
        return np.round(out[0].numpy() * 32767.0).astype(np.int16)

    return changed


def _embedded(
    tokenizer: Tokenizer, pack: Pack, chosen: npt.NDArray[np.int64], read: Callable[[int], Samples], path: Path
) -> Float16:
    """Embeddings of recordings at their places in the pack, kept in `path`; those of others are zero."""
    shape = (int(pack.frames.sum()), tokenizer.codebook.dim)
    done = _done(path)
    out = np.memmap(path, np.float16, "r+" if done else "w+", shape=shape)
    for number in tqdm(range(done, len(chosen)), path.stem, len(chosen), initial=done, unit="recording"):
        recording = int(chosen[number])
        samples = read(recording).astype(np.float32) / 32767.0
        start, frames = int(pack.start[recording]), len(samples) // FRAME_SAMPLES
        out[start : start + frames] = tokenizer.embed(samples)
        if number % JOURNAL_EVERY == JOURNAL_EVERY - 1 or number == len(chosen) - 1:
            out.flush()
            _journal(path).write_text(str(number + 1))
    return out


def _journal(path: Path) -> Path:
    return path.with_suffix(".done")


def _done(path: Path) -> int:
    """How many of the stretches whose embeddings are kept in `path` are there."""
    return int(_journal(path).read_text()) if _journal(path).exists() else 0
