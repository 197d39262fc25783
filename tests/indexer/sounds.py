"""Babble: sound with the rhythm of speech, made from numbers, and written in every format."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

CODECS = {
    ".wav": ("wav", "pcm_s16le"),
    ".flac": ("flac", "flac"),
    ".mp3": ("mp3", "libmp3lame"),
    ".ogg": ("ogg", "libopus"),
    ".opus": ("ogg", "libopus"),
    ".m4a": ("ipod", "aac"),
    ".webm": ("webm", "libopus"),
}


def babble(seconds: float, seed: int = 0, rate: int = 16_000) -> npt.NDArray[np.float32]:
    """Harmonics of a wandering voice in syllables, with a breath now and then: float32 [samples]."""
    rng = np.random.default_rng(seed)
    count = int(seconds * rate)
    time = np.arange(count) / rate
    pitch = 120 + 30 * np.sin(2 * np.pi * (0.3 + 0.2 * rng.random()) * time + rng.random())
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    syllables = np.floor(time * 4).astype(int)
    colours = rng.random((syllables.max(initial=0) + 1, 12)) ** 2
    loud = rng.random(len(colours)) > 0.15
    envelope = np.sin(np.pi * (time * 4 % 1.0)) * loud[syllables]
    wave = sum(colours[syllables, k] * np.sin((2 * k + 1) * phase) for k in range(12))
    wave = 0.06 * envelope * np.asarray(wave) + 1e-4 * rng.standard_normal(count)
    return wave.astype(np.float32)


def write(path: Path, samples: npt.NDArray[np.float32], *, rate: int = 16_000, channels: int = 1) -> Path:
    """Write mono float32 `samples`, made at 16 kHz, in the format of the suffix, at `rate`, to all `channels` alike."""
    container_format, codec = CODECS[path.suffix]
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[channels]
    wanted = 48_000 if codec == "libopus" else rate
    with av.open(str(path), "w", format=container_format) as container:
        stream = container.add_stream(codec, rate=wanted, layout=layout)
        resampler = av.AudioResampler("s16", "mono", wanted)
        packed = (np.clip(samples, -1, 1) * 32_767).astype(np.int16)[None]
        mono = []
        if packed.size:
            frame = av.AudioFrame.from_ndarray(packed, "s16", "mono")
            frame.sample_rate = 16_000
            mono = [f.to_ndarray()[0] for f in [*resampler.resample(frame), *resampler.resample(None)]]
            wide = np.repeat(np.concatenate(mono), channels)[None]
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wide), "s16", layout)
            frame.sample_rate = wanted
            fit = av.AudioResampler(stream.format, layout, wanted, stream.frame_size or None)
            for part in [*fit.resample(frame), *fit.resample(None)]:
                container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path
