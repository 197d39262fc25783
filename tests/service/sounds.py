"""Sound files made by the tests."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np


def encode(
    samples: np.ndarray, rate: int = 16_000, kind: str = "wav", codec: str = "pcm_s16le", layout: str = "mono"
) -> bytes:
    """Float samples [frames] or [channels, frames] in [-1, 1] as the bytes of an audio file."""
    channels = np.atleast_2d(samples)
    packed = np.ascontiguousarray((np.clip(channels, -1, 1) * 32_767).astype(np.int16).T.reshape(1, -1))
    out = io.BytesIO()
    with av.open(out, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(packed, "s16", layout)
        frame.sample_rate = rate
        resampler = av.AudioResampler(stream.format, layout, rate, stream.frame_size or None)
        for part in [] if packed.size == 0 else [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return out.getvalue()


def write(path: Path, samples: np.ndarray, **kinds: object) -> Path:
    """`encode` into a file."""
    path.write_bytes(encode(samples, **kinds))
    return path
