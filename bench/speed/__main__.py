"""Times real time of a tokenizer from samples to token ids, as it ships and with its weights in 8 bits.

    python -m bench.speed [--tokenizer FILE.onnx] [--audio FOLDER] [--seconds 600] [--int8 OUT.onnx] [--json]

All variants are run in turn, several times over, in one process: the ratios are what counts. `--int8` writes the
quantised file, for `python -m bench.accuracy.probes --tokenizer OUT.onnx`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from model import audio
from model.audio import SAMPLE_RATE, Samples
from model.codebook import Codebook, fit_codebook
from model.tokenizer import DEFAULT_WEIGHTS, Tokenizer

DEMO = Path(__file__).parents[2] / "service" / "demo" / "archive"
SEGMENT_S = 20  # what the indexer hands over at a time
ROUNDS = 5
CODEBOOK_SIZE = 4_096


class Speech(CalibrationDataReader):  # type: ignore[misc]
    """Segments of real sound, from which the ranges of activations are taken."""

    def __init__(self, segments: list[Samples]) -> None:
        self.left: Iterator[Samples] = iter(segments)

    def get_next(self) -> dict[str, Samples] | None:
        """What the quantiser asks for until there is no more."""
        segment = next(self.left, None)
        return None if segment is None else {"waveform": segment[None]}


def quantise(path: Path, segments: list[Samples], out: Path) -> None:
    """Weights and activations of the matrix products in 8 bits, with fixed ranges.

    Ranges that follow the input would make a chunk's ids depend on its neighbours, which the contract forbids.
    """
    folded = out.with_suffix(".folded.onnx")  # the quantiser looks for weights, not for what becomes one at loading
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folded)
    options.log_severity_level = 3
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    quantize_static(
        folded, out, Speech(segments), quant_format=QuantFormat.QDQ, op_types_to_quantize=["MatMul"], per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, reduce_range=False,
        calibrate_method=CalibrationMethod.MinMax, nodes_to_exclude=_codebook_products(folded),
    )  # fmt: skip
    folded.unlink()
    model, original = onnx.load(out), onnx.load(path)
    onnx.helper.set_model_props(model, {e.key: e.value for e in original.metadata_props})
    # What only served to make another constant is gone, and the contract asks for the codebook by its name.
    kept = {tensor.name for tensor in model.graph.initializer}
    model.graph.initializer.extend(
        t for t in original.graph.initializer if t.name in ("codebook", "pq") and t.name not in kept
    )
    onnx.save(model, out)


def _codebook_products(path: Path) -> list[str]:
    """The product with the codebook, and nothing else: ids must be the nearest centroids exactly."""
    model = onnx.load(path)
    return [n.name for n in model.graph.node if n.op_type == "MatMul" and n.input[0] == "embeddings"]


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
    parser.add_argument("--int8", type=Path, help="where the quantised file goes")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    segments = segments_of(arguments.audio, arguments.seconds)
    audio_s = len(segments) * SEGMENT_S
    with tempfile.TemporaryDirectory() as folder:
        quantised = arguments.int8 or Path(folder) / "int8.onnx"
        variants = {"fp32": arguments.tokenizer}
        if Tokenizer(arguments.tokenizer).info.context == "bounded":
            quantise(arguments.tokenizer, segments[:10], quantised)
            variants["int8"] = quantised
        tokenizers = {name: Tokenizer(path) for name, path in variants.items()}
        sample = np.concatenate([tokenizers["fp32"].embed(segment) for segment in segments])
        size = min(CODEBOOK_SIZE, len(sample) // 3)
        codebook = fit_codebook(sample, size, parts=0)
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
        for _ in range(ROUNDS + 1):
            for name, tokenizer in tokenizers.items():
                taken[name].append(once(tokenizer, codebook, segments))
        for name, runs in taken.items():
            embed_s, tokens_s = np.median(np.array(runs[1:]), axis=0)
            agreement = np.mean(
                [(tokenizers[name].embed(s) * tokenizers["fp32"].embed(s)).sum(1).mean() for s in segments[:5]]
            )
            figures = {
                "tokenizer": name, "megabytes": round(variants[name].stat().st_size / 1e6, 1), "codebook": size,
                "embed_times_real_time": round(audio_s / embed_s), "tokens_times_real_time": round(audio_s / tokens_s),
                "times_real_time": round(audio_s / (embed_s + tokens_s)), "cosine_to_fp32": round(float(agreement), 4),
                "cores": os.cpu_count(), "machine": platform.machine(),
            }  # fmt: skip
            print(json.dumps(figures) if arguments.json else figures)


if __name__ == "__main__":
    main()
