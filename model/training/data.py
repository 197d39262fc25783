"""Recordings packed on disk: one file of samples, one table of where each recording lies."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from model import audio
from model.encoder import FRAME_SAMPLES

SAMPLES_FILE, TABLE_FILE, COPIES_FILE = "samples.i16", "recordings.json", "copies.json"
SOUND_FRAMES = 7_500  # 5 minutes: what the ranges of an encoder are measured on


class CorpusError(Exception):
    """There is too little in a corpus to learn from."""

    code = "training_failed"


@dataclass(frozen=True)
class Entry:
    """One training recording as the manifest names it."""

    path: str
    language: str
    speaker: str
    kind: str  # "speech" or "noise"


@dataclass(frozen=True)
class Pack:
    """Recordings one after another, each a whole number of frames long.

    `samples` int16 [total], `start` and `frames` int64 [recordings] in frames of 640 samples. `copies` has the frame at
    which a changed copy of a recording begins (see `codecs.add_copies`), beyond all recordings.
    """

    samples: npt.NDArray[np.int16]
    start: npt.NDArray[np.int64]
    frames: npt.NDArray[np.int64]
    entries: list[Entry]
    copies: dict[int, int] = field(default_factory=dict)

    def recordings(self, kind: str) -> npt.NDArray[np.int64]:
        """Numbers of the recordings of one kind."""
        return np.array([i for i, entry in enumerate(self.entries) if entry.kind == kind], np.int64)

    def sounds(self, frames: int = SOUND_FRAMES, seed: int = 0) -> Iterator[npt.NDArray[np.float32]]:
        """Recordings of every kind, drawn by chance, until there are so many frames: float32 [samples] each."""
        for recording in np.random.default_rng(seed).permutation(len(self.entries)):
            if frames <= 0:
                return
            yield self.waveform(int(recording)).astype(np.float32) / 32767.0
            frames -= int(self.frames[recording])

    def waveform(self, recording: int) -> npt.NDArray[np.int16]:
        """int16 [frames * 640] of one recording."""
        first = int(self.start[recording]) * FRAME_SAMPLES
        return self.samples[first : first + int(self.frames[recording]) * FRAME_SAMPLES]


def read_manifest(path: Path, splits: Iterable[str]) -> list[Entry]:
    """Entries of a manifest (TSV: path, corpus, language, speaker, split, text, seconds) that are in `splits`."""
    wanted = set(splits)
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [
            Entry(row["path"], row["language"], row["speaker"], "noise" if row["split"] == "noise" else "speech")
            for row in rows
            if row["split"] in wanted
        ]


def scan_folder(folder: Path) -> list[Entry]:
    """Every file below `folder` as speech without labels, for training on one's own archive."""
    return [
        Entry(str(path.relative_to(folder)), "", "", "speech") for path in sorted(folder.rglob("*")) if path.is_file()
    ]


def _decode(path: str) -> npt.NDArray[np.int16] | None:
    try:
        samples = audio.read(path)
    except audio.AudioError:
        return None
    whole = len(samples) - len(samples) % FRAME_SAMPLES
    return np.round(samples[:whole] * 32767.0).astype(np.int16)


def write_pack(entries: list[Entry], folder: Path, work: Path, workers: int) -> Pack:
    """Decode `entries` (below `folder`) into `work`; files that cannot be decoded or are under a frame are left out.

    Raises CorpusError where too little is left.
    """
    work.mkdir(parents=True, exist_ok=True)
    start: list[int] = []
    frames: list[int] = []
    kept: list[Entry] = []
    total = 0
    partial = work / (SAMPLES_FILE + ".partial")
    with partial.open("wb") as out, ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        paths = [str(folder / entry.path) for entry in entries]
        decoded = pool.map(_decode, paths, chunksize=16)
        for entry, samples in zip(entries, tqdm(decoded, "decode", len(entries), unit="file"), strict=True):
            if samples is None or len(samples) == 0:
                continue
            samples.tofile(out)
            kept.append(entry)
            start.append(total)
            frames.append(len(samples) // FRAME_SAMPLES)
            total += frames[-1]
    if sum(entry.kind == "speech" for entry in kept) < 2:
        partial.unlink()
        raise CorpusError(f"fewer than two recordings of speech could be decoded below {folder}")
    partial.rename(work / SAMPLES_FILE)
    table = {"start": start, "frames": frames, "entries": [vars(entry) for entry in kept]}
    write_atomically(work / TABLE_FILE, json.dumps(table))
    return read_pack(work)


def write_atomically(path: Path, text: str) -> None:
    """A file that is there whole or not at all."""
    partial = path.with_suffix(path.suffix + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def read_pack(work: Path) -> Pack:
    """The pack that `write_pack` left in `work`; samples stay on disk until they are touched."""
    copies = work / COPIES_FILE
    table = json.loads((work / TABLE_FILE).read_text(encoding="utf-8"))
    return Pack(
        samples=np.memmap(work / SAMPLES_FILE, np.int16, "c"),
        start=np.array(table["start"], np.int64),
        frames=np.array(table["frames"], np.int64),
        entries=[Entry(**entry) for entry in table["entries"]],
        copies=dict(json.loads(copies.read_text(encoding="utf-8"))) if copies.exists() else {},
    )
