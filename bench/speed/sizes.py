"""Times real time of students of several sizes, from samples to embeddings, as the product has them (8 bits).

    python -m bench.speed.sizes [--audio FOLDER] [--seconds 200] [--json]

Weights are random, which does not matter here; what they are worth: `bench.accuracy.ablation`, the rows of the same
shapes. The files run in turn, several times over, in one process: the ratios to the first are what counts. Needs the
train extra.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from bench.speed.__main__ import DEMO, segments_of
from model.audio import SAMPLE_RATE, Samples
from model.codebook import Codebook
from model.encoder import AttentionShape, parameter_count
from model.export import Description, export
from model.tokenizer import Tokenizer
from model.training.stages import save_student
from model.training.student import Student

SHAPES = (
    AttentionShape(),
    AttentionShape(blocks=4, hidden=512),
    AttentionShape(blocks=2, hidden=1_024),
    AttentionShape(blocks=2, hidden=512),
    AttentionShape(blocks=1, hidden=512),
)
ROUNDS = 5
CENTROIDS = 64


def made(shape: AttentionShape, folder: Path, sounds: list[Samples]) -> Path:
    """A tokenizer file of that shape which multiplies in 8 bits."""
    torch.manual_seed(0)
    out = folder / f"{shape.blocks}-{shape.hidden}.onnx"
    weights = out.with_suffix(".safetensors")
    save_student(Student(shape), weights)
    book = np.random.default_rng(0).standard_normal((CENTROIDS, shape.dim)).astype(np.float32)
    book /= np.linalg.norm(book, axis=1, keepdims=True)
    export(weights, Codebook(book), Description("random", "0", "none", "nothing"), out, 8, sounds)
    return out


def main() -> None:
    """Parse, build, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio", type=Path, default=DEMO)
    parser.add_argument("--seconds", type=float, default=200.0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    segments = segments_of(arguments.audio, arguments.seconds)
    audio_s = sum(len(segment) for segment in segments) / SAMPLE_RATE
    with tempfile.TemporaryDirectory() as folder:
        files = [made(shape, Path(folder), segments[:3]) for shape in SHAPES]
        tokenizers = [Tokenizer(path) for path in files]
        taken = np.zeros((ROUNDS + 1, len(SHAPES)))
        for number in range(ROUNDS + 1):
            for i, tokenizer in enumerate(tokenizers):
                began = time.perf_counter()
                for segment in segments:
                    tokenizer.embed(segment)
                taken[number, i] = time.perf_counter() - began
        seconds = np.median(taken[1:], axis=0)
        rows = [
            {
                "blocks": shape.blocks, "hidden": shape.hidden, "parameters": parameter_count(shape),
                "megabytes": round(path.stat().st_size / 1e6, 1), "times_real_time": round(audio_s / s),
                "against_the_first": round(float(seconds[0] / s), 2),
            }
            for shape, path, s in zip(SHAPES, files, seconds, strict=True)
        ]  # fmt: skip
    if arguments.json:
        print("\n".join(json.dumps(row) for row in rows))
        return
    print(f"| {' | '.join(rows[0])} |\n|{'---|' * len(rows[0])}")
    for row in rows:
        print(f"| {' | '.join(f'{value:,}' for value in row.values())} |")


if __name__ == "__main__":
    main()
