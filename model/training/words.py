"""Words with their times: what the pair stages learn from, and which of them only measure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from rapidfuzz import fuzz, process

from model.encoder import FRAME_SECONDS
from model.training.data import Pack
from model.training.wordtimes import WordsError, read_times

__all__ = ["Groups", "LabelSampler", "Word", "WordsError", "read_words", "sound_alikes"]

MIN_FRAMES, MAX_FRAMES = 4, 50  # 0.16 to 2 s: shorter words are no terms, longer ones are alignment errors
MIN_LETTERS = 4
TRIES = 20  # draws for each label of a batch


@dataclass(frozen=True)
class Word:
    """One occurrence: frames [first, first + frames) of a recording of the pack; `label` is "language/word"."""

    recording: int
    first: int
    frames: int
    label: str
    speaker: str


def read_words(path: Path, pack: Pack, excluded: Collection[str] = (), min_letters: int = MIN_LETTERS) -> list[Word]:
    """Words of a file of word times, or a folder of TextGrids (see `wordtimes.read_times`), said in the pack.

    Words in `excluded`, those too short or too long to serve, and those of other recordings are left out. Raises
    WordsError where the file cannot be read, and where it has words but none of a recording of the pack.
    """
    times = read_times(path)
    number = matched({time.path for time in times}, pack)
    if times and not number:
        raise WordsError(f"{path}: none of its recordings is in the corpus, the first is {times[0].path}")
    return [
        word
        for time in times
        if time.path in number and len(time.word) >= min_letters and time.word not in excluded
        for word in _word(pack, number[time.path], time.start_s, time.end_s, time.word)
    ]


def matched(names: Collection[str], pack: Pack) -> dict[str, int]:
    """The recording of each name that has one: by path, else by path without suffix, else by the bare stem.

    A stem counts where one recording alone has it, and for a name with a folder only where no folder fits: then the
    times lie in other folders than the sound. Else it would be taken for the namesake of a recording left out.
    """
    paths = [PurePosixPath(entry.path) for entry in pack.entries]
    exact = {str(path): i for i, path in enumerate(paths)}
    whole = _unique([str(path.parent / path.stem) for path in paths])
    stems = _unique([path.stem for path in paths])
    found = {name: i for name in names if (i := exact.get(name, whole.get(name))) is not None}
    lost = [name for name in names if name not in found and ("/" not in name or not found)]
    for last, name in _unique([PurePosixPath(name).name for name in lost]).items():
        if last in stems:
            found[lost[name]] = stems[last]
    return found


def _unique(keys: list[str]) -> dict[str, int]:
    """The place of each key that is there once."""
    count = Counter(keys)
    return {key: i for i, key in enumerate(keys) if count[key] == 1}


def _word(pack: Pack, recording: int, start_s: float, end_s: float, word: str) -> Iterable[Word]:
    first = max(0, round(start_s / FRAME_SECONDS))
    stop = min(round(end_s / FRAME_SECONDS), int(pack.frames[recording]))
    if MIN_FRAMES <= stop - first <= MAX_FRAMES:
        entry = pack.entries[recording]
        yield Word(recording, first, stop - first, f"{entry.language}/{word.casefold()}", entry.speaker)


class Groups:
    """Words by label, each label said by at least two speakers, split into those that teach and those that measure.

    A share of labels is held out altogether, and a share of speakers; `held_out` has the held-out labels.
    """

    def __init__(self, words: list[Word], held_labels: float = 0.08, held_speakers: float = 0.1, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        labels = sorted({word.label for word in words})
        speakers = sorted({word.speaker for word in words})
        by_label: dict[str, list[Word]] = {label: [] for label in labels}
        for word in words:
            by_label[word.label].append(word)
        shared = [label for label in labels if len({word.speaker for word in by_label[label]}) > 1]
        held = set(rng.permutation(shared)[: round(len(shared) * held_labels)].tolist())
        # A speaker with a large part of all words stays: without such a voice too little would be left to learn.
        said = Counter(word.speaker for word in words)
        common = {speaker for speaker in speakers if said[speaker] > 0.05 * len(words)}
        quiet = set(rng.permutation(speakers)[: round(len(speakers) * held_speakers)].tolist()) - common
        self.held_out = [word for label in sorted(held) for word in by_label[label]]
        self.of: dict[str, list[Word]] = {}
        for label in shared:
            kept = [word for word in by_label[label] if word.speaker not in quiet]
            if label not in held and len({word.speaker for word in kept}) > 1:
                self.of[label] = kept
        self.labels = sorted(self.of)
        self.held_speakers = quiet

    def pair(self, label: str, rng: np.random.Generator) -> tuple[Word, Word]:
        """Two occurrences of a label by two speakers."""
        group = self.of[label]
        first = group[int(rng.integers(len(group)))]
        others = [word for word in group if word.speaker != first.speaker]
        return first, others[int(rng.integers(len(others)))]


def sound_alikes(labels: list[str], count: int = 8) -> dict[str, list[str]]:
    """For each label the `count` others of its language whose spelling is nearest: negatives that are hard."""
    by_language: dict[str, list[str]] = {}
    for label in labels:
        by_language.setdefault(label.split("/", 1)[0], []).append(label)
    near: dict[str, list[str]] = {}
    for group in by_language.values():
        scores = process.cdist(group, group, scorer=fuzz.ratio, dtype=np.uint8, workers=1)
        for row, label in enumerate(group):
            order = np.argsort(-scores[row].astype(np.int64), kind="stable")[: count + 1]
            near[label] = [group[int(i)] for i in order if i != row][:count]
    return near


class LabelSampler:
    """Draws labels of a batch: some that sound like one drawn before, some from languages without word times."""

    def __init__(self, groups: Groups, timed: frozenset[str], hard: float, other_languages: float) -> None:
        self.near = sound_alikes(groups.labels)
        self.pools = [
            [label for label in groups.labels if (label.split("/")[0] in timed) == kind] for kind in (True, False)
        ]
        self.hard, self.other = hard, other_languages

    def draw(self, count: int, rng: np.random.Generator) -> list[str]:
        """`count` different labels, or all there are where those are fewer."""
        chosen: list[str] = []
        count = min(count, sum(len(pool) for pool in self.pools))
        for _ in range(TRIES * count):
            if len(chosen) == count:
                return chosen
            pool = self.pools[int(rng.random() < self.other)] or self.pools[0] or self.pools[1]
            label = pool[int(rng.integers(len(pool)))]
            if chosen and rng.random() < self.hard:
                near = self.near[chosen[int(rng.integers(len(chosen)))]]
                label = near[int(rng.integers(len(near)))] if near else label
            if label not in chosen:
                chosen.append(label)
        # What is drawn comes again and again where labels are few: the rest is of those that are left.
        left = [label for pool in self.pools for label in pool if label not in chosen]
        return chosen + [left[int(i)] for i in rng.permutation(len(left))[: count - len(chosen)]]
