"""The classic baseline: MFCC with first and second differences, cosine, subsequence DTW."""

from __future__ import annotations

from pathlib import Path

import numba
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from model import audio
from model.frontend import fourier_basis, mel_bank
from service.evaluation.figures import Figures, figures
from service.evaluation.judging import Ranked
from service.evaluation.tasks import read_task

MELS, CEPSTRA, WINDOW, HOP, FFT = 40, 13, 400, 160, 512
KEEP = 2  # every second frame: 20 ms

Float32 = npt.NDArray[np.float32]


def mfcc(samples: Float32) -> Float32:
    """39 features every 20 ms, each of zero mean and unit variance in the recording, then unit length: [frames, 39]."""
    samples = np.pad(samples, (0, max(0, WINDOW - len(samples))))
    samples = np.append(samples[:1], samples[1:] - 0.97 * samples[:-1]).astype(np.float32)
    at = HOP * np.arange(1 + (len(samples) - WINDOW) // HOP)[:, None] + np.arange(WINDOW)[None]
    spectrum = samples[at] @ fourier_basis(WINDOW, FFT).T
    bins = FFT // 2 + 1
    power = spectrum[:, :bins] ** 2 + spectrum[:, bins:] ** 2
    log = np.log(power @ mel_bank(MELS, FFT, 60.0, 7_600.0).T + 1e-8)
    cosines = np.cos(np.pi / MELS * (np.arange(MELS)[:, None] + 0.5) * np.arange(CEPSTRA)[None])
    cepstra = log @ cosines
    slope = np.gradient(cepstra, axis=0) if len(cepstra) > 1 else np.zeros_like(cepstra)
    bend = np.gradient(slope, axis=0) if len(cepstra) > 1 else np.zeros_like(cepstra)
    features = np.concatenate([cepstra, slope, bend], axis=1)
    features = ((features - features.mean(0)) / (features.std(0) + 1e-5))[::KEEP]
    return np.asarray(features / (np.linalg.norm(features, axis=1, keepdims=True) + 1e-8), np.float32)


@numba.njit(cache=True)
def best_stretch(cost: Float32) -> tuple[float, int, int]:
    """Least cost a step of all paths (1-1, 1-0, 0-1) through [query, recording], and its stretch of the recording."""
    rows, columns = cost.shape
    total, length = cost[0].copy(), np.ones(columns, np.float32)
    start = np.arange(columns)
    for i in range(1, rows):
        new_total, new_length, new_start = np.empty_like(total), np.empty_like(length), np.empty_like(start)
        for j in range(columns):
            best, steps, begin = total[j], length[j], start[j]
            if j > 0 and total[j - 1] <= best:
                best, steps, begin = total[j - 1], length[j - 1], start[j - 1]
            if j > 0 and new_total[j - 1] < best:
                best, steps, begin = new_total[j - 1], new_length[j - 1], new_start[j - 1]
            new_total[j], new_length[j], new_start[j] = best + cost[i, j], steps + 1, begin
        total, length, start = new_total, new_length, new_start
    mean = total / length
    end = int(mean.argmin())
    return float(mean[end]), int(start[end]), end + 1


def evaluate(task: Path, folder: Path) -> dict[str, Figures]:
    """Figures of the baseline on a task whose archive lies in `folder`."""
    queries = read_task(task)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [str(path.relative_to(folder)) for path in paths]
    sounds = [audio.read(path) for path in paths]
    features = [mfcc(sound) for sound in sounds]
    frame_s = HOP * KEEP / audio.SAMPLE_RATE
    answers = {}
    for query in tqdm(queries, "MFCC-DTW"):
        clip = mfcc(audio.read(task.parent / query.clip))
        found = [(*best_stretch(1.0 - clip @ feature.T), name) for name, feature in zip(names, features, strict=True)]
        found.sort()
        answers[query.clip] = [Ranked(name, start * frame_s, end * frame_s, -cost) for cost, start, end, name in found]
    return figures(queries, answers, len(paths), sum(len(s) for s in sounds) / audio.SAMPLE_RATE)
