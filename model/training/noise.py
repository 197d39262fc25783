"""Noise made by rule, for archives of which nobody has recorded any: coloured noise, and voices that talk at once."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model.audio import SAMPLE_RATE
from model.training.data import Pack

EXPONENTS = {"white": 0.0, "pink": 1.0, "brown": 2.0}
SECONDS = 10  # of each
LEVEL = 0.05  # root mean square; full scale is 1
VOICES = 4

Float32 = npt.NDArray[np.float32]


def coloured(samples: int, exponent: float, rng: np.random.Generator) -> Float32:
    """Gaussian noise float32 [samples] whose power falls with frequency to the `exponent`; below 50 Hz it is flat."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    hz = np.maximum(np.fft.rfftfreq(samples, 1.0 / SAMPLE_RATE), 50.0)
    return _levelled(np.fft.irfft(spectrum * hz ** (-exponent / 2.0), samples))


def babble(pack: Pack, recordings: npt.NDArray[np.int64], samples: int, rng: np.random.Generator) -> Float32:
    """Stretches of `recordings` on top of each other: float32 [samples]."""
    total = np.zeros(samples)
    for _ in range(VOICES):
        source = pack.waveform(int(rng.choice(recordings)))
        first = int(rng.integers(0, max(1, len(source) - samples)))
        total += np.resize(source[first : first + samples], samples)
    return _levelled(total)


def write_noises(folder: Path, seed: int = 0) -> list[Path]:
    """Coloured noise as wav files in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    paths = []
    for name, exponent in EXPONENTS.items():
        samples = np.clip(coloured(SECONDS * SAMPLE_RATE, exponent, rng), -1.0, 1.0)
        path = folder / f"{name}.wav"
        with wave.open(str(path), "wb") as out:
            out.setnchannels(1)
            out.setsampwidth(2)
            out.setframerate(SAMPLE_RATE)
            out.writeframes(np.round(samples * 32767.0).astype("<i2").tobytes())
        paths.append(path)
    return paths


def _levelled(x: npt.NDArray[np.float64]) -> Float32:
    return np.asarray(x * (LEVEL / max(1e-9, float(np.sqrt(np.mean(x**2))))), np.float32)
