"""Where the speech of a query clip begins and ends."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from model.audio import SAMPLE_RATE, Samples
from model.encoder import FRAME_SAMPLES
from service.errors import NoSpeech

SILENCE_RMS = 1e-4  # -80 dB full scale: below it there is nothing to find in a frame
# Chosen on the English development queries, as they are and with noise 25 to 50 dB below them on both sides.
DEPTH_DB = 25.0  # speech is what rises to within this of the loudest frames
RISE_DB = 8.0  # and above the quietest frames by this,
LEAST_DB = 12.0  # unless these are nearer to the loudest than this: then they are speech too
MARGIN_FRAMES = 1  # kept on each side: weak consonants lie below the threshold
MIN_FRAMES = 3  # of speech; less is a click


@dataclass(frozen=True)
class Speech:
    """A stretch of a clip in frames of 640 samples: [start, end)."""

    start: int
    end: int

    @property
    def start_s(self) -> float:
        """Start in seconds."""
        return self.start * FRAME_SAMPLES / SAMPLE_RATE

    @property
    def end_s(self) -> float:
        """End in seconds."""
        return self.end * FRAME_SAMPLES / SAMPLE_RATE


def trim(samples: Samples) -> Speech:
    """The stretch from the first to the last loud frame of float32 [samples], with a small margin.

    Loud is relative to the clip itself, so that a quiet clip is trimmed like a loud one. Raises NoSpeech.
    """
    frames = len(samples) // FRAME_SAMPLES
    if frames < MIN_FRAMES:
        raise NoSpeech(f"the clip has {len(samples) / SAMPLE_RATE:.2f} s of sound, too little for a spoken term")
    blocks = samples[: frames * FRAME_SAMPLES].reshape(frames, FRAME_SAMPLES)
    rms = np.sqrt(np.mean((blocks - blocks.mean(1, keepdims=True)) ** 2, axis=1))
    if rms.max() < SILENCE_RMS:
        raise NoSpeech("the clip is silent")
    level_db = 20.0 * np.log10(np.maximum(rms, SILENCE_RMS / 10))
    loud_db, quiet_db = np.sort(level_db)[-MIN_FRAMES], np.percentile(level_db, 10)
    threshold_db = max(loud_db - DEPTH_DB, min(quiet_db + RISE_DB, loud_db - LEAST_DB))
    loud = np.flatnonzero((level_db >= threshold_db) & (rms >= SILENCE_RMS))
    if len(loud) < MIN_FRAMES:
        raise NoSpeech("the clip has a click but no speech")
    return Speech(max(0, int(loud[0]) - MARGIN_FRAMES), min(frames, int(loud[-1]) + 1 + MARGIN_FRAMES))
