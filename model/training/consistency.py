"""Whether a student says the same of the same sound: measured without labels, on recordings that it did not learn from.

Token consistency: stretches cut out, in noise and in a room, against the same stretch in its clean recording. Words:
same-different average precision (Carlin et al. 2011) over pairs that a search by sound has found.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt
import torch
from rapidfuzz.distance import Levenshtein

from model.codebook import Codebook, codebook_size, spherical_kmeans
from model.encoder import FRAME_SAMPLES
from model.training import noise
from model.training.alignment import same_different
from model.training.augment import Augmentation, augment
from model.training.data import Pack
from model.training.embedding import embed_clips, embed_recordings
from model.training.student import Student
from model.training.words import Word

CLIPS, LEAST_CLIPS = 1_000, 10
CLIP_FRAMES = 20  # 0.8 s
CONTEXT_FRAMES = 50  # that are tokenized around a stretch in its recording
LOUD = 0.5  # of a recording's mean frame energy: quieter stretches are pauses
SPEECH_RMS = 0.1  # full scale is 1: what a search brings its clips to
LEAST_PAIRS = 20
MOST_CODES, FRAMES_PER_CODE = 1_024, 10
WORSE = Augmentation(
    gain_db=(0.0, 0.0), noise=1.0, snr_db=(5.0, 20.0), room=1.0, tilt=0.0, telephone=0.0, companding=0.0
)

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


class TooLittleSpeech(Exception):
    """The held-out recordings are too quiet or too short to measure with."""

    code = "adapt_too_little_audio"


@dataclass(frozen=True)
class Consistency:
    """`tokens`: mean edit similarity in [0, 1]; `words`: average precision, or None where too few pairs are known."""

    tokens: float
    words: float | None

    def as_json(self) -> dict[str, float | None]:
        """Both figures, rounded."""
        return {"tokens": round(self.tokens, 4), "words": None if self.words is None else round(self.words, 4)}


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What is measured with, the same for every student.

    `clips` float32 [clips, samples] are the changed cut-outs of the frames from `first` int64 [clips] on of the
    recordings `of` int64 [clips], as places in `recordings`; `words` are pairs of stretches that follow each other.
    """

    pack: Pack
    recordings: Int64
    clips: Float32
    of: Int64
    first: Int64
    words: list[Word]
    codes: int


def hold_out(pack: Pack, recordings: Int64, words: list[Word], seed: int) -> HeldOut:
    """Cut the stretches and change them. Raises TooLittleSpeech."""
    rng = np.random.default_rng(seed)
    places = [(i, at) for i, recording in enumerate(recordings) for at in _loud_places(pack, int(recording))]
    if len(places) < LEAST_CLIPS:
        raise TooLittleSpeech(
            f"{len(recordings)} recordings to measure with have {len(places)} stretches of speech: "
            f"{LEAST_CLIPS} are needed"
        )
    drawn = rng.permutation(len(places))[:CLIPS]
    of, first = np.array([places[int(i)] for i in np.sort(drawn)], np.int64).T
    samples = CLIP_FRAMES * FRAME_SAMPLES
    clean, around = np.zeros((len(of), samples), np.float32), np.zeros((len(of), samples), np.float32)
    for i, (r, at) in enumerate(zip(of, first, strict=True)):
        start = int(at) * FRAME_SAMPLES
        clean[i] = pack.waveform(int(recordings[r]))[start : start + samples].astype(np.float32) / 32767.0
        talk = i % 2 == 0
        around[i] = (
            noise.babble(pack, recordings, samples, rng)
            if talk
            else noise.coloured(samples, float(rng.uniform(0.0, 2.0)), rng)
        )
    generator = torch.Generator().manual_seed(seed)
    clips = augment(torch.from_numpy(clean), torch.from_numpy(around), WORSE, generator).numpy()
    rms = np.sqrt((clips**2).mean(1, keepdims=True))
    clips = np.clip(clips * (SPEECH_RMS / np.maximum(rms, 1e-6)), -1.0, 1.0)
    frames = int(pack.frames[recordings].sum())
    codes = max(2, min(codebook_size(frames), MOST_CODES, frames // FRAMES_PER_CODE))
    return HeldOut(pack, recordings, clips, of, first, words, codes)


def measure(student: Student, held_out: HeldOut, device: torch.device) -> Consistency:
    """Both figures of one student."""
    embeddings = embed_recordings(student, held_out.pack, held_out.recordings.tolist(), device)
    codebook = Codebook(spherical_kmeans(np.concatenate(embeddings), held_out.codes))
    alone = embed_clips(student, held_out.clips, device)
    similarities = []
    for clip, r, first in zip(alone, held_out.of, held_out.first, strict=True):
        low = max(0, int(first) - CONTEXT_FRAMES)
        whole = codebook.tokenize(embeddings[int(r)][low : int(first) + CLIP_FRAMES + CONTEXT_FRAMES])
        there = whole[int(first) - low :][:CLIP_FRAMES]
        similarities.append(edit_similarity(there, codebook.tokenize(clip)))
    return Consistency(float(np.mean(similarities)), _average_precision(student, held_out, embeddings, device))


def edit_similarity(one: npt.NDArray[np.uint16], other: npt.NDArray[np.uint16]) -> float:
    """1 - edit distance / longer length, of two runs of frame tokens after run-length collapse."""
    a, b = ([key for key, _ in groupby(ids.tolist())] for ids in (one, other))
    return float(Levenshtein.normalized_similarity(a, b))


def _average_precision(
    student: Student, held_out: HeldOut, embeddings: list[Float32], device: torch.device
) -> float | None:
    """Of the pairs, one stretch cut out and the other in its recording; None where there are fewer than LEAST_PAIRS."""
    words, pack = held_out.words, held_out.pack
    if len(words) // 2 < LEAST_PAIRS:
        return None
    place = {int(recording): i for i, recording in enumerate(held_out.recordings)}
    cut = []
    for word in words[::2]:
        samples = pack.waveform(word.recording)[word.first * FRAME_SAMPLES : (word.first + word.frames) * FRAME_SAMPLES]
        cut.append(samples.astype(np.float32) / 32767.0)
    alone = embed_clips(student, np.stack(cut), device)
    stretches: list[Float32] = []
    for number, word in enumerate(words):
        inside = embeddings[place[word.recording]][word.first : word.first + word.frames]
        stretches.append(inside if number % 2 else alone[number // 2])
    return same_different(stretches, [word.label for word in words], [word.speaker for word in words])


def _loud_places(pack: Pack, recording: int) -> Int64:
    """First frames of stretches of speech, half a stretch apart."""
    wave = pack.waveform(recording).astype(np.float32) / 32767.0
    energy = np.concatenate([[0.0], np.cumsum((wave.reshape(-1, FRAME_SAMPLES) ** 2).mean(1, dtype=np.float64))])
    at = np.arange(0, len(energy) - CLIP_FRAMES, CLIP_FRAMES // 2)
    mean = (energy[at + CLIP_FRAMES] - energy[at]) / CLIP_FRAMES
    loud = (mean >= LOUD * energy[-1] / max(1, len(energy) - 1)) & (mean > 0.0)
    return np.asarray(at[loud], np.int64)
