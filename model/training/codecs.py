"""Speech coded and decoded again by the codecs of telephones, calls and old archives, through PyAV."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from model.audio import SAMPLE_RATE
from model.encoder import FRAME_SAMPLES, FRAME_SECONDS
from model.training.data import COPIES_FILE, SAMPLES_FILE, Pack, read_pack, write_atomically

Float32 = npt.NDArray[np.float32]

LONGEST_DELAY_S = 0.15  # of an encoder and its decoder together
COPIED_HOURS, COPIED_SHARE = 1.0, 0.1  # of the speech, at most


@dataclass(frozen=True)
class Coding:
    """An encoder, its decoder, the rate at which it is given sound (Hz), and the bit rates to choose from."""

    encoder: str
    decoder: str
    sample_rate: int
    bit_rates: tuple[int, ...]


CODINGS = (
    Coding("libopus", "opus", 16_000, (6_000, 8_000, 12_000)),
    Coding("libmp3lame", "mp3float", 16_000, (16_000, 24_000)),
    Coding("libopencore_amrnb", "amrnb", 8_000, (4_750, 7_950, 12_200)),
    Coding("g722", "g722", 16_000, (64_000,)),
)


def available() -> list[Coding]:
    """Those of `CODINGS` that this build of FFmpeg has."""
    return [c for c in CODINGS if {c.encoder, c.decoder} <= av.codecs_available]


def coded(samples: Float32, coding: Coding, bit_rate: int) -> Float32:
    """float32 [samples] at 16 kHz as it comes out of the codec, of the same length and at the same place in time."""
    encoder: Any = av.AudioCodecContext.create(coding.encoder, "w")
    encoder.sample_rate, encoder.layout, encoder.bit_rate = coding.sample_rate, "mono", bit_rate
    encoder.format = encoder.codec.audio_formats[0]
    encoder.time_base = Fraction(1, coding.sample_rate)
    encoder.open()
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples, np.float32)[None], "fltp", "mono")
    frame.sample_rate, frame.pts = SAMPLE_RATE, 0
    down = av.AudioResampler(encoder.format, "mono", coding.sample_rate, frame_size=encoder.frame_size or None)
    packets = [p for f in [*down.resample(frame), *down.resample(None)] for p in encoder.encode(f)]
    packets += encoder.encode(None)
    decoder: Any = av.AudioCodecContext.create(coding.decoder, "r")
    decoder.sample_rate, decoder.layout = coding.sample_rate, "mono"
    up = av.AudioResampler("fltp", "mono", SAMPLE_RATE)
    parts: list[npt.NDArray[np.float32]] = []
    for packet in [*packets, None]:
        for heard in decoder.decode(packet):
            heard.pts = None
            parts += [f.to_ndarray()[0] for f in up.resample(heard)]
    parts += [f.to_ndarray()[0] for f in up.resample(None)]
    return _in_place(np.concatenate(parts) if parts else np.zeros(0, np.float32), samples)


def _in_place(late: Float32, samples: Float32) -> Float32:
    """What a codec gives, moved to where it is most like what it was given, and cut to its length."""
    delay = round(LONGEST_DELAY_S * SAMPLE_RATE)
    points = 1 << (len(late) + len(samples) + delay).bit_length()
    likeness = np.fft.irfft(np.fft.rfft(late, points) * np.conj(np.fft.rfft(samples, points)), points)
    shift = int(np.argmax(likeness[:delay]))
    out = np.zeros(len(samples), np.float32)
    there = late[shift : shift + len(samples)]
    out[: len(there)] = there
    return out


def add_copies(pack: Pack, work: Path, workers: int, seed: int = 0, share: float = COPIED_SHARE) -> Pack:
    """The pack with a share of its recordings a second time, each through a codec; they lie behind those in `work`.

    Coding takes far longer than everything else that changes sound, so it is done once, not for each batch.
    """
    codings, path = available(), work / COPIES_FILE
    if not codings:
        return pack
    if not path.exists():
        rng = np.random.default_rng(seed)
        speech = pack.recordings("speech")
        left = min(COPIED_HOURS * 3600 / FRAME_SECONDS, share * float(pack.frames[speech].sum()))
        chosen: list[int] = []
        for recording in rng.permutation(speech).tolist():
            if pack.frames[recording] <= left:
                chosen.append(recording)
                left -= int(pack.frames[recording])
        jobs = []
        for recording in chosen:
            coding = codings[int(rng.integers(len(codings)))]
            jobs.append((pack.waveform(recording), coding, int(rng.choice(coding.bit_rates))))
        at = int(read_pack(work).frames.sum())  # the pack may be a part of what lies there
        copies: list[tuple[int, int]] = []
        with (work / SAMPLES_FILE).open("r+b") as out, ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            out.truncate(2 * at * FRAME_SAMPLES)
            out.seek(0, 2)
            made = pool.map(_copy, jobs, chunksize=8)
            for recording, copy in zip(chosen, tqdm(made, "codecs", len(jobs), unit="recording"), strict=True):
                copy.tofile(out)
                copies.append((recording, at))
                at += len(copy) // FRAME_SAMPLES
        write_atomically(path, json.dumps(copies))
    found = dict(json.loads(path.read_text(encoding="utf-8")))
    return replace(pack, samples=np.memmap(work / SAMPLES_FILE, np.int16, "c"), copies=found)


def _copy(job: tuple[npt.NDArray[np.int16], Coding, int]) -> npt.NDArray[np.int16]:
    samples, coding, bit_rate = job
    heard = coded(samples.astype(np.float32) / 32767.0, coding, bit_rate)
    return np.round(np.clip(heard, -1.0, 1.0) * 32767.0).astype(np.int16)
