import numpy as np
import pytest

from service.errors import NoSpeech
from service.search.trim import trim


def clip(level: float, floor: float = 1e-3) -> np.ndarray:
    """0.8 s of near silence, 0.6 s of sound, 1.2 s of near silence."""
    rng = np.random.default_rng(0)
    samples = floor * rng.standard_normal(int(2.6 * 16_000))
    time = np.arange(int(0.6 * 16_000)) / 16_000
    samples[12_800 : 12_800 + len(time)] += np.sin(2 * np.pi * 220 * time)
    return (level * samples).astype(np.float32)


@pytest.mark.parametrize("level", [0.9, 0.05, 0.002])
def test_loud_or_quiet_the_same_stretch_is_found(level: float) -> None:
    speech = trim(clip(level))
    assert speech.start_s == pytest.approx(0.8, abs=0.13)
    assert speech.end_s == pytest.approx(1.4, abs=0.13)


def test_a_noisy_clip_is_trimmed_too() -> None:
    speech = trim(clip(0.5, floor=0.1))
    assert speech.start_s == pytest.approx(0.8, abs=0.2)
    assert speech.end_s == pytest.approx(1.4, abs=0.2)


def test_sound_throughout_is_kept_whole() -> None:
    samples = (0.1 * np.random.default_rng(0).standard_normal(16_000)).astype(np.float32)
    speech = trim(samples)
    assert (speech.start, speech.end) == (0, 25)


@pytest.mark.parametrize(
    ("samples", "says"),
    [
        (np.zeros(32_000, np.float32), "silent"),
        (np.full(32_000, 0.3, np.float32), "silent"),  # a constant is no sound
        (np.zeros(320, np.float32), "0.02 s"),
        (np.zeros(0, np.float32), "0.00 s"),
        (np.eye(1, 32_000, 16_000, dtype=np.float32)[0], "click"),
    ],
)
def test_what_holds_no_term_is_refused(samples: np.ndarray, says: str) -> None:
    with pytest.raises(NoSpeech, match=says):
        trim(samples)
