"""An archive and its queries in memory: sound, embeddings, and the conditions under which queries are heard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from bench.accuracy.embedders import Embed, Float32
from model import audio
from model.audio import SAMPLE_RATE, Samples
from model.codebook import PQ_PARTS
from service.errors import NoSpeech
from service.evaluation.errors import TaskError
from service.evaluation.tasks import Place, TaskQuery
from service.search.query import SPEECH_RMS
from service.search.trim import trim

CONDITIONS = ("isolated", "in_sentence", "isolated_5db")
NOISE_DB = 5.0  # level of the clip over that of the noise laid under it
THREADS = 2  # of the reference machine

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Recordings:
    """Sound in order of its names, and its embeddings end to end: float32 [total, dim], int64 offsets [n + 1]."""

    names: tuple[str, ...]
    sounds: list[Samples]
    embeddings: Float32
    offsets: Int64
    frame_seconds: float

    @property
    def seconds(self) -> float:
        """Of sound, in all."""
        return sum(len(sound) for sound in self.sounds) / SAMPLE_RATE

    def stretch(self, place: Place) -> tuple[int, slice]:
        """The number of a place's recording, and its frames among all. Raises TaskError for an unknown recording."""
        if place.name not in self.names:
            raise TaskError(f"the task speaks of {place.name}, and the archive has no such recording")
        number = self.names.index(place.name)
        first, last = int(self.offsets[number]), int(self.offsets[number + 1])
        start = round((place.start_s or 0.0) / self.frame_seconds)
        end = last - first if place.end_s is None else round(place.end_s / self.frame_seconds)
        return number, slice(min(last, first + start), min(last, first + end))


def read_recordings(folder: Path, embed: Embed, frame_seconds: float, threads: int = THREADS) -> Recordings:
    """Decode and embed all files of a folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    if not paths:
        raise TaskError(f"there are no recordings in {folder}")
    with pool(threads) as workers:
        sounds = list(workers.map(audio.read, paths))
    parts = [_whole_parts(part) for part in embed(sounds)]
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    names = tuple(str(path.relative_to(folder)) for path in paths)
    return Recordings(names, sounds, np.concatenate(parts), offsets, frame_seconds)


def read_queries(
    queries: Sequence[TaskQuery], condition: str, embed: Embed, clips: Path, recordings: Recordings, noise: Path | None
) -> list[Float32]:
    """Embeddings of each query's speech, as `service.search.trim` finds it; all of it where that finds none.

    Clips are brought to the level that the product gives them, after the noise has been laid under them. A query in
    its sentence is cut from the embeddings of the whole recording, which keeps its own level.
    """
    if condition == "in_sentence":
        out = []
        for query in queries:
            number, frames = recordings.stretch(query.source)
            start, end = round((query.source.start_s or 0.0) * SAMPLE_RATE), query.source.end_s
            sound = recordings.sounds[number][start : None if end is None else round(end * SAMPLE_RATE)]
            out.append(recordings.embeddings[frames][_speech(sound, recordings.frame_seconds)])
        return out
    sounds = [audio.read(clips / query.clip) for query in queries]
    if condition == "isolated_5db":
        if noise is None:
            raise ValueError("a folder with noise is needed for clips in noise")
        files = sorted(path for path in noise.rglob("*") if path.is_file())
        sounds = [with_noise(sound, files, number) for number, sound in enumerate(sounds)]
    cuts = [_speech(sound, recordings.frame_seconds) for sound in sounds]
    heard = embed([_at_speech_level(sound) for sound in sounds])
    return [_whole_parts(part)[cut] for part, cut in zip(heard, cuts, strict=True)]


def with_noise(sound: Samples, files: Sequence[Path], number: int) -> Samples:
    """A clip with a stretch of one of the files under it, `NOISE_DB` below its level; `number` decides which."""
    rng = np.random.default_rng(number)
    noise = audio.read(files[int(rng.integers(len(files)))])
    under = np.resize(np.roll(noise, -int(rng.integers(len(noise)))), len(sound))
    if not under.any():  # some recordings of noise have silence in them
        under = rng.standard_normal(len(sound)).astype(np.float32)
    gain = 10 ** (-NOISE_DB / 20) * np.sqrt(np.mean(sound**2) / np.mean(under**2))
    return np.asarray(sound + np.float32(gain) * under, np.float32)


def _speech(sound: Samples, frame_seconds: float) -> slice:
    try:
        speech = trim(sound)
    except NoSpeech:
        return slice(None)
    return slice(round(speech.start_s / frame_seconds), max(1, round(speech.end_s / frame_seconds)))


def _at_speech_level(sound: Samples) -> Samples:
    rms = float(np.sqrt(np.mean(sound[_speech(sound, 1 / SAMPLE_RATE)] ** 2)))
    return np.asarray(np.clip(sound * np.float32(SPEECH_RMS / max(rms, 1e-6)), -1.0, 1.0), np.float32)


def _whole_parts(embeddings: Float32) -> Float32:
    """Zeros at the end, so that the product quantiser's parts are equal: cosines stay."""
    return np.pad(np.asarray(embeddings, np.float32), ((0, 0), (0, -embeddings.shape[1] % PQ_PARTS)))


@contextmanager
def pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that do their matrix products alone: BLAS threads of their own would only get in each other's way."""
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(threads) as workers:
        yield workers
