"""Remake the demo from its two tables: `python -m service.demo.make`. Needs espeak-ng; nobody who uses the demo does.

script.tsv says who says what: one row a recording. terms.tsv has the words to look for, and the voices that say
them again as queries: no recording has such a voice. truth.tsv, which is written here, has every place where a
term is said, by the times of espeak's own word events, drawn in to where there is sound.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from service.demo.espeak import Espeak, Speech

HERE = Path(__file__).parent
SAMPLE_RATE = 16_000  # Hz, of the files
BIT_RATE = 16_000  # bit/s: Opus at which speech still sounds like speech
LEVEL_DBFS = -23.0  # of the speech in a recording
SOUND_DB = -35.0  # below the loudest moment of a word: quieter than that is a pause
EDGE_S = 0.25  # of near silence around each recording

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Spoken:
    """A stretch of a recording in which a term is said, in seconds."""

    term: str
    start_s: float
    end_s: float


def rows(table: Path) -> list[dict[str, str]]:
    """The rows of a table, by column name."""
    with table.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def located(speech: Speech, text: str, terms: list[str]) -> list[Spoken]:
    """Where in `speech` each of `terms` is said, in order of time."""
    found: list[Spoken] = []
    starts = [word.start_s for word in speech.words] + [len(speech.samples) / speech.rate]
    for term in terms:
        for match in re.finditer(rf"\b{re.escape(term)}\b", text, re.IGNORECASE):
            said = [at for at, word in enumerate(speech.words) if word.begin < match.end() and word.end > match.start()]
            if not said:
                raise ValueError(f"espeak-ng gave no time for {term!r} in {text[:40]!r}")
            start_s, end_s = _sounding(speech, starts[said[0]], starts[said[-1] + 1])
            found.append(Spoken(term, start_s, end_s))
    return sorted(found, key=lambda spoken: spoken.start_s)


def _sounding(speech: Speech, start_s: float, end_s: float) -> tuple[float, float]:
    """[start_s, end_s] without the pause that may stand at either end of it."""
    first = round(start_s * speech.rate)
    hop = speech.rate // 100  # 10 ms
    part = speech.samples[first : round(end_s * speech.rate)]
    part = part[: len(part) // hop * hop].reshape(-1, hop)
    level = np.sqrt((part**2).mean(axis=1)) + 1e-9
    loud = np.flatnonzero(20 * np.log10(level / level.max()) > SOUND_DB)
    return (first + loud[0] * hop) / speech.rate, (first + (loud[-1] + 1) * hop) / speech.rate


def recorded(speech: Speech, sound: str, seed: int) -> Float32:
    """The speech as a microphone had it: `studio`, `telephone` (300 to 3,400 Hz) or `wind`. At its own rate."""
    random = np.random.default_rng(seed)
    edge = np.zeros(round(EDGE_S * speech.rate), np.float32)
    samples = np.concatenate([edge, speech.samples, edge])
    samples *= 10 ** (LEVEL_DBFS / 20) / np.sqrt((speech.samples**2).mean())
    frequencies = np.fft.rfftfreq(len(samples), 1 / speech.rate)
    noise = np.fft.rfft(random.standard_normal(len(samples)))
    if sound == "studio":
        below_db, shape = -45.0, 1 / np.sqrt(np.maximum(frequencies, 50) / 50)
    elif sound == "telephone":
        band = 1 / (1 + (300 / np.maximum(frequencies, 1)) ** 8) / (1 + (frequencies / 3_400) ** 12)
        samples = np.fft.irfft(np.fft.rfft(samples) * band, len(samples)).astype(np.float32)
        below_db, shape = -30.0, band
    elif sound == "wind":
        below_db, shape = -22.0, 1 / np.maximum(frequencies, 40)
    else:
        raise ValueError(f"no sound called {sound!r}")
    hiss = np.fft.irfft(noise * shape, len(samples))
    if sound == "wind":  # gusts, a few seconds each
        hiss *= 0.6 + 0.4 * np.sin(2 * np.pi * np.arange(len(samples)) / speech.rate / 3.7 + random.uniform(0, 6))
    hiss *= 10 ** ((LEVEL_DBFS + below_db) / 20) / np.sqrt((hiss**2).mean())
    return np.clip(samples + hiss, -0.99, 0.99).astype(np.float32)


def write_opus(path: Path, samples: Float32, rate: int) -> None:
    """Write mono `samples` of `rate` Hz as Ogg Opus; the same samples give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
    frame = av.AudioFrame.from_ndarray((samples * 32_767).astype(np.int16)[None], format="s16", layout="mono")
    frame.sample_rate = rate
    # Without bitexact the stream's serial number is drawn at random.
    with av.open(str(path), "w", format="ogg", container_options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libopus", rate=SAMPLE_RATE, layout="mono", options={"application": "voip"})
        stream.bit_rate = BIT_RATE
        stream.codec_context.flags |= av.codec.context.Flags.bitexact
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            part.pts = None
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))


def make(folder: Path = HERE) -> None:
    """Write archive/, query.opus, queries/ and truth.tsv into `folder`. Raises EspeakError without espeak-ng."""
    espeak = Espeak()
    terms = rows(HERE / "terms.tsv")
    lines = ["recording\tstart\tend\tterm"]
    for seed, row in enumerate(rows(HERE / "script.tsv")):
        speech = espeak.say(row["text"], row["voice"], int(row["words_per_minute"]), int(row["pitch"]))
        write_opus(folder / "archive" / row["recording"], recorded(speech, row["sound"], seed), speech.rate)
        sought = [term["term"] for term in terms if term["language"] == row["language"]]
        for spoken in located(speech, row["text"], sought):
            start_s, end_s = spoken.start_s + EDGE_S, spoken.end_s + EDGE_S
            lines.append(f"{row['recording']}\t{start_s:.3f}\t{end_s:.3f}\t{spoken.term}")
    for seed, row in enumerate(terms):
        speech = espeak.say(row["term"], row["voice"], int(row["words_per_minute"]), int(row["pitch"]))
        write_opus(folder / row["clip"], recorded(speech, "studio", 1_000 + seed), speech.rate)
    (folder / "truth.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    make()
