"""Frame embedders to be probed: a tokenizer file, a student checkpoint, and the features of the MFCC baseline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from bench.accuracy import mfcc
from model.audio import SAMPLE_RATE, Samples
from model.encoder import FRAME_SECONDS
from model.tokenizer import Tokenizer

Float32 = npt.NDArray[np.float32]
Embed = Callable[[list[Samples]], list[Float32]]


@dataclass(frozen=True)
class Embedder:
    """Waveforms float32 [samples] at 16 kHz in, as many arrays of unit embeddings float32 [frames, dim] out.

    Frame i is what is heard about `i * frame_seconds` to `(i + 1) * frame_seconds`.
    """

    name: str
    frame_seconds: float
    embed: Callable[[Samples], Float32]

    def __call__(self, sounds: list[Samples]) -> list[Float32]:
        """Embeddings of each waveform, one after another, with progress on stderr."""
        return [self.embed(sound) for sound in tqdm(sounds, self.name, leave=False)]


def twice(embedder: Embedder) -> Embedder:
    """Twice the frames a second: each sound is heard again from half a frame on, and the frames are taken in turn."""
    half = round(embedder.frame_seconds * SAMPLE_RATE) // 2

    def embed(samples: Samples) -> Float32:
        rows, between = embedder.embed(samples), embedder.embed(samples[half:])
        out = np.empty((len(rows) + len(between), rows.shape[1]), np.float32)
        out[::2], out[1::2] = rows, between  # as many, or one less
        return out

    return Embedder(f"{embedder.name}, twice", embedder.frame_seconds / 2, embed)


def of_tokenizer(path: Path, threads: int = 0) -> Embedder:
    """The embeddings of a tokenizer's ONNX file. Raises TokenizerError."""
    tokenizer = Tokenizer(path, threads=threads)
    return Embedder(tokenizer.info.name, tokenizer.info.frame_seconds, tokenizer.embed)


def of_mfcc() -> Embedder:
    """MFCC-39 of `bench.accuracy.mfcc`: of zero mean and unit variance in each waveform, then of unit length."""
    return Embedder("mfcc", mfcc.HOP * mfcc.KEEP / SAMPLE_RATE, mfcc.mfcc)


def of_student(path: Path) -> Embedder:
    """The student of a training stage (safetensors), in torch; the train extra is needed."""
    import torch

    from model.training.stages import load_student

    student = load_student(path)

    def embed(samples: Samples) -> Float32:
        with torch.inference_mode():
            out = student(torch.from_numpy(np.ascontiguousarray(samples, np.float32))[None])
        return np.asarray(out[0].numpy(), np.float32)

    return Embedder(f"{path.parent.name}/{path.stem}", FRAME_SECONDS, embed)
