"""What is said, as phones: transcripts in many languages turned into strings of one alphabet by eSpeak NG.

Phones of many languages are what speech has in common whoever speaks it; learning them is the classical way to features
for query by example (multilingual bottleneck features: Chen et al. 2016, Hermann et al. 2021).
"""

from __future__ import annotations

import csv
import shutil
import subprocess
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from model.encoder import FRAME_SECONDS
from model.training.data import Pack
from model.training.words import matched
from model.training.wordtimes import Timed, read_times

PROGRAM = "espeak-ng"
VOICES = {
    "ar": "ar", "as": "as", "ca": "ca", "cs": "cs", "cv": "cv", "cy": "cy", "de": "de", "el": "el", "en": "en-us",
    "eo": "eo", "es": "es", "et": "et", "eu": "eu", "fa": "fa", "fi": "fi", "fr": "fr-fr", "ga-IE": "ga", "hi": "hi",
    "hu": "hu", "ia": "ia", "id": "id", "it": "it", "ka": "ka", "ky": "ky", "lt": "lt", "lv": "lv", "mt": "mt",
    "nl": "nl", "or": "or", "pa-IN": "pa", "pl": "pl", "pt": "pt-br", "ro": "ro", "ru": "ru", "sl": "sl",
    "sv-SE": "sv", "ta": "ta", "tr": "tr", "tt": "tt", "vi": "vi", "zh-HK": "yue",
}  # fmt: skip
"""The voice that reads each language aloud; languages that eSpeak NG cannot read are left out."""

PAUSE = 0  # the first label; phones are numbered from 1
MAX_FRAMES = 200  # 8 s: what is longer is left out
GAP_FRAMES = 1  # between two words that follow each other
RARE = 100  # phones that are said less often than that are passed over


class PhonesError(Exception):
    """Transcripts cannot be turned into phones."""

    code = "training_failed"


@dataclass(frozen=True)
class Said:
    """Frames [first, first + frames) of a recording in which these words are said, each a string of phones."""

    recording: int
    first: int
    frames: int
    words: tuple[tuple[str, ...], ...]


class Phones:
    """Stretches with their phones as labels, and the phones of single words."""

    def __init__(self, said: Sequence[Said], of_word: dict[str, tuple[str, ...]]) -> None:
        count = Counter(phone for stretch in said for word in stretch.words for phone in word)
        self.alphabet = sorted(phone for phone, times in count.items() if times >= RARE)
        self.number = {phone: i + 1 for i, phone in enumerate(self.alphabet)}
        self.of_word = {word: self.labels([phones]) for word, phones in of_word.items()}
        every = [(stretch, self.labels(stretch.words)) for stretch in said]
        kept = [(s, labels) for s, labels in every if any(labels) and len(labels) <= s.frames + len(s.words)]
        self.said = [stretch for stretch, _ in kept]
        self.labels_of = [labels for _, labels in kept]

    @property
    def size(self) -> int:
        """How many labels there are, the pause with them."""
        return len(self.alphabet) + 1

    def labels(self, words: Iterable[Sequence[str]]) -> list[int]:
        """Labels with a pause before, between and after the words; neighbours within a word differ."""
        out = [PAUSE]
        for word in words:
            numbers = [self.number[phone] for phone in word if phone in self.number]
            out += numbers[:1] + [b for a, b in pairwise(numbers) if a != b]
            if out[-1] != PAUSE:
                out.append(PAUSE)
        return out


def padded_labels(strings: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Labels int64 [n, longest] and their lengths int64 [n]."""
    lengths = torch.tensor([len(string) for string in strings], device=device)
    out = torch.zeros((len(strings), int(lengths.max())), dtype=torch.int64)
    for i, string in enumerate(strings):
        out[i, : len(string)] = torch.tensor(string)
    return out.to(device), lengths


def spelled(text: str) -> str:
    """A transcript without marks that are not spoken."""
    kept = (c if unicodedata.category(c)[0] in "LM" or c in "'-" else " " for c in text)
    return " ".join("".join(kept).split())


def parse(ipa: str) -> tuple[tuple[str, ...], ...]:
    """Words of phones in what eSpeak NG prints: base letters alone, without stress, length, tone or diacritics.

    An affricate or a diphthong is two phones. Nothing where it fell back to another language.
    """
    if "(" in ipa:
        return ()
    words = (
        tuple(c for c in unicodedata.normalize("NFD", word) if unicodedata.category(c) in ("Ll", "Lo"))
        for word in ipa.split()
    )
    return tuple(word for word in words if word)


def phonemise(texts: Sequence[tuple[str, str]], threads: int = 2) -> list[tuple[tuple[str, ...], ...]]:
    """Words of phones of each (voice, text). Raises PhonesError where eSpeak NG is not installed."""
    program = shutil.which(PROGRAM)
    if program is None:
        raise PhonesError(f"{PROGRAM} turns transcripts into phones, and is not installed")

    def one(item: tuple[str, str]) -> tuple[tuple[str, ...], ...]:
        voice, text = item
        done = subprocess.run(  # noqa: S603  (the program found above, and text on its input alone)
            [program, "-q", "--ipa", "-v", voice, "--stdin"], input=text.encode(), capture_output=True
        )
        return parse(done.stdout.decode("utf-8", "replace")) if done.returncode == 0 else ()

    distinct = sorted(set(texts))
    with ThreadPoolExecutor(threads) as pool:
        found = dict(zip(distinct, tqdm(pool.map(one, distinct), "phones", len(distinct), unit="text"), strict=True))
    return [found[item] for item in texts]


def runs_of_words(times: Sequence[Timed], pack: Pack, excluded: Collection[str]) -> list[tuple[int, list[Timed]]]:
    """Recording and words of each run in which word follows word at once; excluded words end a run."""
    number = matched({time.path for time in times}, pack)
    by_recording: dict[int, list[Timed]] = {}
    for time in times:
        if time.path in number:
            by_recording.setdefault(number[time.path], []).append(time)
    runs: list[tuple[int, list[Timed]]] = []
    for recording, words in sorted(by_recording.items()):
        run: list[Timed] = []
        for time in sorted(words, key=lambda t: t.start_s):
            if run and (
                time.start_s - run[-1].end_s > GAP_FRAMES * FRAME_SECONDS
                or (time.end_s - run[0].start_s) / FRAME_SECONDS > MAX_FRAMES
            ):
                runs.append((recording, run))
                run = []
            if time.word.casefold() in excluded:
                if run:
                    runs.append((recording, run))
                run = []
            else:
                run = [*run, time]
        if run:
            runs.append((recording, run))
    return runs


def read_phones(
    pack: Pack, words: Path | None, manifest: Path | None, excluded: Collection[str], threads: int = 2
) -> Phones:
    """Phones of runs of words with times, and of whole recordings that have a transcript and no word times.

    Words in `excluded` are never read aloud: a run ends there, and a recording whose transcript has one is left out.
    """
    times = [] if words is None else read_times(words)
    runs = runs_of_words(times, pack, excluded)
    timed = set(matched({time.path for time in times}, pack).values())
    texts = {} if manifest is None else _texts(manifest, pack, excluded, timed)
    asked: list[tuple[str, str]] = []
    spans: list[tuple[int, int, int]] = []
    for recording, run in runs:
        voice = VOICES.get(pack.entries[recording].language)
        first = max(0, round(run[0].start_s / FRAME_SECONDS))
        stop = min(round(run[-1].end_s / FRAME_SECONDS), int(pack.frames[recording]))
        if voice is not None and stop > first:
            asked.append((voice, " ".join(time.word for time in run)))
            spans.append((recording, first, stop - first))
    for recording, text in sorted(texts.items()):
        asked.append((VOICES[pack.entries[recording].language], text))
        spans.append((recording, 0, int(pack.frames[recording])))
    singles = sorted(
        {
            (f"{pack.entries[r].language}/{t.word.casefold()}", VOICES[pack.entries[r].language], t.word)
            for r, run in runs
            for t in run
            if pack.entries[r].language in VOICES
        }
    )
    said = phonemise(asked + [(voice, word) for _, voice, word in singles], threads)
    stretches = [Said(*span, words) for span, words in zip(spans, said[: len(spans)], strict=True) if words]
    alone = said[len(spans) :]
    of_word = {label: sum(words, ()) for (label, _, _), words in zip(singles, alone, strict=True) if words}
    return Phones(stretches, of_word)


def _texts(manifest: Path, pack: Pack, excluded: Collection[str], timed: Collection[int]) -> dict[int, str]:
    """Transcripts by recording, of those without word times that are short enough and have no excluded word."""
    number = {entry.path: i for i, entry in enumerate(pack.entries)}
    out: dict[int, str] = {}
    with manifest.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            recording = number.get(row["path"])
            if recording is None or recording in timed or pack.frames[recording] > MAX_FRAMES:
                continue
            text = spelled(row["text"])
            spoken = {word.casefold() for word in text.split()}
            if text and pack.entries[recording].language in VOICES and spoken.isdisjoint(excluded):
                out[recording] = text
    return out
