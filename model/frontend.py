"""The log-mel front ends: each defined once, in arrays, used in training and inside the exported graph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model.audio import SAMPLE_RATE

Float32 = npt.NDArray[np.float32]

HOP = 160  # samples, 10 ms
WINDOW = 400  # samples, 25 ms
PAD = (WINDOW - HOP) // 2  # samples of silence on each side, so that n samples give n // HOP frames


@dataclass(frozen=True)
class FrontEnd:
    """Log-mel energies on a fixed scale: the features of one frame never depend on another's loudness.

    `floor` is added to each mel energy before the natural logarithm; `mean` and `scale` are taken off and multiplied.
    """

    mels: int
    fft: int  # points
    low_hz: float
    high_hz: float
    floor: float
    mean: float
    scale: float

    @property
    def basis(self) -> Float32:
        """`fourier_basis` of its window."""
        return fourier_basis(WINDOW, self.fft)

    @property
    def bank(self) -> Float32:
        """`mel_bank` of its bands."""
        return mel_bank(self.mels, self.fft, self.low_hz, self.high_hz)

    def log_mel(self, samples: Float32) -> Float32:
        """Features of one waveform: float32 [samples] at 16 kHz to float32 [samples // HOP, mels].

        The plain form of what the graph computes; training and export build on the same arrays.
        """
        frames = len(samples) // HOP
        padded = np.pad(np.asarray(samples, np.float32), (PAD, PAD))
        at = HOP * np.arange(frames)[:, None] + np.arange(WINDOW)[None, :]
        spectrum = padded[at] @ self.basis.T
        bins = self.fft // 2 + 1
        power = spectrum[:, :bins] ** 2 + spectrum[:, bins:] ** 2
        return np.asarray((np.log(power @ self.bank.T + self.floor) - self.mean) * self.scale, np.float32)


# For the convolutional encoder; the floor lies below the noise of 16-bit audio.
NARROW = FrontEnd(mels=64, fft=512, low_hz=60.0, high_hz=7_600.0, floor=1e-7, mean=-4.0, scale=0.25)
# As Whisper has it, (log10 + 4) / 4 of 80 bands, but for its floor: that one depends on the loudest frame of a window.
WIDE = FrontEnd(
    mels=80, fft=400, low_hz=0.0, high_hz=SAMPLE_RATE / 2, floor=1e-8,
    mean=-4.0 * float(np.log(10.0)), scale=0.25 / float(np.log(10.0)),
)  # fmt: skip


def mel_bank(mels: int, fft: int, low_hz: float, high_hz: float) -> Float32:
    """Triangular mel filters on the Slaney scale, each of unit area: float32 [mels, fft // 2 + 1]."""
    break_hz, break_mel, log_step = 1_000.0, 15.0, np.log(6.4) / 27.0

    def to_mel(hz: float) -> float:
        if hz < break_hz:
            return hz * 3.0 / 200.0
        return float(break_mel + np.log(hz / break_hz) / log_step)

    mel = np.linspace(to_mel(low_hz), to_mel(high_hz), mels + 2)
    hz = np.where(mel < break_mel, mel * 200.0 / 3.0, break_hz * np.exp(log_step * (mel - break_mel)))
    bins = np.arange(fft // 2 + 1) * SAMPLE_RATE / fft
    rise = (bins[None, :] - hz[:-2, None]) / (hz[1:-1, None] - hz[:-2, None])
    fall = (hz[2:, None] - bins[None, :]) / (hz[2:, None] - hz[1:-1, None])
    bank = np.clip(np.minimum(rise, fall), 0.0, None) * (2.0 / (hz[2:] - hz[:-2]))[:, None]
    return np.asarray(bank, np.float32)


def fourier_basis(window: int, fft: int) -> Float32:
    """Hann-windowed cosines then sines, float32 [2 * (fft // 2 + 1), window]: the filters of an STFT."""
    time = np.arange(window)
    hann = 0.5 - 0.5 * np.cos(2.0 * np.pi * time / window)
    angle = 2.0 * np.pi * np.outer(np.arange(fft // 2 + 1), time) / fft
    return np.concatenate([np.cos(angle) * hann, -np.sin(angle) * hann]).astype(np.float32)
