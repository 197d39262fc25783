"""Times real time of a tokenizer from samples to token ids, as it is and with its products in float32.

    python -m bench.speed [--tokenizer FILE.onnx] [--audio FOLDER] [--seconds 600] [--float32 OUT.onnx] [--json]

Both are run in turn, several times over, in one process: the ratios are what counts. `--float32` keeps the other file,
for `python -m bench.accuracy.probes --tokenizer OUT.onnx`. A file without products of 8 bits is run alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx

from model import audio
from model.audio import SAMPLE_RATE, Samples
from model.codebook import Codebook, fit_codebook
from model.graph import multiplies_in_8_bits
from model.tokenizer import DEFAULT_WEIGHTS, Tokenizer

DEMO = Path(__file__).parents[2] / "service" / "demo" / "archive"
SEGMENT_S = 20  # what the indexer hands over at a time
ROUNDS = 5
CODEBOOK_SIZE = 4_096


def in_float32(path: Path, out: Path) -> None:
    """The same tokenizer with float32 products: its weights read back and exported anew. Needs the train extra."""
    from model.export import Description, export
    from model.training.imported import student_from_onnx
    from model.training.stages import save_student

    tokenizer = Tokenizer(path, threads=1)
    weights = out.with_suffix(".safetensors")
    save_student(student_from_onnx(path), weights)
    info = tokenizer.info
    export(
        weights,
        tokenizer.codebook,
        Description(info.name, info.version, info.licence, info.trained_on, info.score_map),
        out,
    )
    weights.unlink()


def segments_of(folder: Path, seconds: float) -> list[Samples]:
    """Sound of a folder end to end, repeated until there is enough, in segments."""
    parts = [
        audio.read(path) for path in sorted(folder.rglob("*")) if path.suffix in (".opus", ".flac", ".wav", ".ogg")
    ]
    whole = np.resize(np.concatenate(parts), int(seconds * SAMPLE_RATE))
    size = SEGMENT_S * SAMPLE_RATE
    return [np.ascontiguousarray(whole[i : i + size]) for i in range(0, len(whole) - size + 1, size)]


def once(tokenizer: Tokenizer, codebook: Codebook, segments: list[Samples]) -> tuple[float, float]:
    """Seconds to embed all segments, and to find their tokens."""
    started = time.perf_counter()
    embedded = [tokenizer.embed(segment) for segment in segments]
    middle = time.perf_counter()
    for embeddings in embedded:
        tokenizer.collapse(embeddings, codebook)
    return middle - started, time.perf_counter() - middle


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, default=DEFAULT_WEIGHTS)
    parser.add_argument("--audio", type=Path, default=DEMO)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--float32", type=Path, help="where the file with float32 products goes")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    segments = segments_of(arguments.audio, arguments.seconds)
    audio_s = len(segments) * SEGMENT_S
    with tempfile.TemporaryDirectory() as folder:
        variants = {"as it is": arguments.tokenizer}
        if multiplies_in_8_bits(onnx.load(arguments.tokenizer)):
            variants["float32"] = arguments.float32 or Path(folder) / "float32.onnx"
            in_float32(arguments.tokenizer, variants["float32"])
        tokenizers = {name: Tokenizer(path) for name, path in variants.items()}
        sample = np.concatenate([tokenizers["as it is"].embed(segment) for segment in segments])
        size = min(CODEBOOK_SIZE, len(sample) // 3)
        codebook = fit_codebook(sample, size, parts=0)
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
        for _ in range(ROUNDS + 1):
            for name, tokenizer in tokenizers.items():
                taken[name].append(once(tokenizer, codebook, segments))
        for name, runs in taken.items():
            embed_s, tokens_s = np.median(np.array(runs[1:]), axis=0)
            agreement = np.mean(
                [(tokenizers[name].embed(s) * tokenizers["as it is"].embed(s)).sum(1).mean() for s in segments[:5]]
            )
            figures = {
                "tokenizer": name, "megabytes": round(variants[name].stat().st_size / 1e6, 1), "codebook": size,
                "embed_times_real_time": round(audio_s / embed_s), "tokens_times_real_time": round(audio_s / tokens_s),
                "times_real_time": round(audio_s / (embed_s + tokens_s)), "cosine": round(float(agreement), 4),
                "cores": os.cpu_count(), "machine": platform.machine(),
            }  # fmt: skip
            print(json.dumps(figures) if arguments.json else figures)


if __name__ == "__main__":
    main()
