"""A corpus of made sound for the training tests."""

from pathlib import Path

import av
import numpy as np


def write_corpus(folder: Path, recordings: int = 8, seconds: float = 5.0) -> Path:
    """Glides and noise as wav files."""
    folder.mkdir(exist_ok=True)
    for number in range(recordings):
        rng = np.random.default_rng(number)
        time = np.arange(int(seconds * 16_000)) / 16_000
        pitch = 150 + 100 * np.sin(2 * np.pi * (0.3 + 0.2 * number) * time)
        wave = 0.2 * np.sin(2 * np.pi * np.cumsum(pitch) / 16_000) * (np.sin(2 * np.pi * 1.7 * time) > -0.5)
        wave = wave + 0.02 * rng.standard_normal(len(time))
        with av.open(str(folder / f"{number}.wav"), "w") as out:
            stream = out.add_stream("pcm_s16le", rate=16_000, layout="mono")
            frame = av.AudioFrame.from_ndarray((wave * 30_000).astype(np.int16)[None], "s16", "mono")
            frame.sample_rate = 16_000
            out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
    return folder
