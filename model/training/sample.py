"""A sample of an archive's recordings, with made noise beside them: most to learn from, some that only measure."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model import audio
from model.training import data, noise
from model.training.data import Entry, Pack
from model.training.selfsearch import pieces

LEAST_RECORDINGS = 4
BYTES_PER_S = 4_000.0  # of a file whose container does not say how long it is: 32 kbit/s
PIECE_FRAMES = 1_500  # 60 s: longer recordings are learned from in parts
NOISE_FOLDER = "noise"

Int64 = npt.NDArray[np.int64]


class TooFewRecordings(Exception):
    """Some recordings must be kept to measure with, and the others be enough to learn from."""

    code = "adapt_too_little_audio"


@dataclass(frozen=True, eq=False)
class Sample:
    """All that was heard; its first frames, cut into `pieces` of a minute, are learned from, noise included.

    `train` and `held_out` int64 number the recordings of `whole`.
    """

    whole: Pack
    pieces: Pack
    train: Int64
    held_out: Int64

    @property
    def learned_frames(self) -> int:
        """Frames of `whole` that are learned from: the first so many."""
        return int(self.pieces.start[-1] + self.pieces.frames[-1])

    @property
    def speech_frames(self) -> int:
        """Frames of all recordings of the archive that were heard."""
        return int(self.whole.frames[self.train].sum() + self.whole.frames[self.held_out].sum())


def draw_sample(files: list[Path], work: Path, hours: float, held_out: float, workers: int, seed: int) -> Sample:
    """Decode a random sample of `files` into `work`, unless it is there.

    Raises TooFewRecordings, and CorpusError where hardly a file can be decoded.
    """
    if (work / data.TABLE_FILE).exists():
        whole = data.read_pack(work)
    else:
        paths = noise.write_noises(work / NOISE_FOLDER, seed)
        entries = [Entry(os.path.abspath(path), "", "", "noise") for path in paths]
        entries += [Entry(os.path.abspath(path), "", "", "speech") for path in choose(files, hours, seed)]
        whole = data.write_pack(entries, Path("/"), work, workers)
    speech = whole.recordings("speech")
    if len(speech) < LEAST_RECORDINGS:
        raise TooFewRecordings(
            f"{len(speech)} recordings could be decoded: adapting needs {LEAST_RECORDINGS} at least, some to learn "
            "from and some to measure with"
        )
    # They lie there in random order, so the last are as good as any, and what is learned from is in one stretch.
    held = min(max(2, round(len(speech) * held_out)), len(speech) - 2)
    count = int(speech[-held])
    learned = Pack(whole.samples, whole.start[:count], whole.frames[:count], whole.entries[:count])
    return Sample(whole, pieces(learned, PIECE_FRAMES), speech[:-held], speech[-held:])


def choose(files: list[Path], hours: float, seed: int) -> list[Path]:
    """Files in random order, as many as fit into `hours`; where hardly one does, the shortest beside."""
    shuffled = [sorted(files)[int(i)] for i in np.random.default_rng(seed).permutation(len(files))]
    chosen: list[Path] = []
    longer: list[tuple[float, Path]] = []
    left_s = hours * 3600.0
    for path in shuffled:
        if left_s <= 0.0 and len(chosen) >= LEAST_RECORDINGS:
            break
        seconds = _claimed_s(path)
        if seconds <= left_s:
            chosen.append(path)
            left_s -= seconds
        else:
            longer.append((seconds, path))
    longer.sort(key=lambda other: other[0])
    return chosen + [path for _, path in longer[: max(0, LEAST_RECORDINGS - len(chosen))]]


def _claimed_s(path: Path) -> float:
    """Seconds that a file claims to have; one that cannot be read has none, and is left out when it is decoded."""
    try:
        return audio.duration_s(path) or path.stat().st_size / BYTES_PER_S
    except (audio.AudioError, OSError):
        return 0.0
