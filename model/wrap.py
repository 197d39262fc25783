"""A tokenizer made of somebody else's encoder: unit features, a codebook, and the contract's names around its graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from model import audio
from model.audio import SAMPLE_RATE
from model.codebook import FIT_FRAMES, fit_codebook
from model.declaration import LARGEST_CODEBOOK, Context
from model.export import Description
from model.foreign import Float32, ForeignEncoder, WrapError
from model.graph import GraphBuilder, write_model

__all__ = ["WrapError", "Wrapped", "wrap"]

WINDOW_S = 20.0  # heard at a time
MOST_FILES = 400  # that a codebook is fitted to
LEAST_LENGTH = 1e-6  # of features: what is shorter has no direction


@dataclass(frozen=True)
class Wrapped:
    """What was made: `size` centroids of `dim` dimensions; `failed` has the message of each file that is no audio."""

    path: Path
    size: int
    dim: int
    heard_s: float
    failed: dict[Path, str]


@dataclass(frozen=True, eq=False)
class _Heard:
    """Features float32 [frames, dim] of recordings, and the files that could not be read."""

    features: Float32
    failed: dict[Path, str]


def wrap(
    encoder: Path,
    out: Path,
    *,
    frame_seconds: float,
    context: Context,
    description: Description,
    left_context_samples: int = 0,
    right_context_samples: int = 0,
    audio: Sequence[Path] | None = None,
    centroids: Path | None = None,
    output: str | None = None,
    size: int = 1_024,
    centre: bool = True,
) -> Wrapped:
    """Write the tokenizer of an encoder (`waveform` [batch, samples] at 16 kHz to features, ONNX) to `out`.

    The codebook is what `centroids` holds, a .npy of [K, dim] in the encoder's features, or `size` centroids fitted to
    the audio files (spherical k-means). With audio and `centre`, the mean of its features is subtracted before they
    are brought to unit length, and from the given centroids too: much of what such encoders give is the same
    everywhere, and cosines see little else. Rows are cut, or the last one repeated, to one a frame.

    Whether the file then honours the contract, `contract.check` tells. Raises WrapError.
    """
    frame_samples = _frame_samples(frame_seconds)
    if min(left_context_samples, right_context_samples) < 0:
        raise WrapError(
            f"a context of {left_context_samples} and {right_context_samples} samples: none can be negative"
        )
    if context == "segment" and (left_context_samples or right_context_samples):
        raise WrapError("a segment tokenizer is given no context: none can be declared")
    if not audio and centroids is None:
        raise WrapError("audio to fit a codebook to, or the centroids of one, are needed")
    given = None if centroids is None else _read_centroids(centroids)
    size = size if given is None else len(given)
    if not 2 <= size <= LARGEST_CODEBOOK:
        raise WrapError(f"a codebook of {size} centroids: 2 to {LARGEST_CODEBOOK} are needed")
    foreign = ForeignEncoder(encoder, frame_samples, output)
    if given is not None and given.shape[1] != foreign.dim:
        raise WrapError(f"{centroids} has {given.shape[1]} dimensions, the features of {encoder} have {foreign.dim}")
    heard = _Heard(np.zeros((0, foreign.dim), np.float32), {})
    if audio and (given is None or centre):
        heard = _hear(foreign, audio, FIT_FRAMES * size)
    mean = heard.features.mean(axis=0) if centre and len(heard.features) else np.zeros(foreign.dim, np.float32)
    if given is None:
        if len(heard.features) < size:
            raise WrapError(
                f"{len(heard.features) * frame_seconds:.1f} s of sound cannot carry {size} centroids: "
                f"{size * frame_seconds:.1f} s are needed at least, {FIT_FRAMES * size * frame_seconds:.0f} s are good"
            )
        codebook = fit_codebook(_unit(heard.features - mean), size, parts=0).centroids
    else:
        codebook = _unit(given - mean)
    metadata = {
        **description.metadata(),
        "frame_seconds": repr(float(frame_seconds)),
        "context": context,
        "left_context_samples": str(left_context_samples),
        "right_context_samples": str(right_context_samples),
    }
    try:
        write_model(_assemble(foreign, mean, codebook, metadata), out)
    except OSError as error:
        raise WrapError(f"cannot write {out}: {error.strerror or error}") from error
    return Wrapped(out, size, foreign.dim, len(heard.features) * frame_seconds, heard.failed)


def _frame_samples(frame_seconds: float) -> int:
    samples = frame_seconds * SAMPLE_RATE
    if not (np.isfinite(samples) and samples > 0.5 and abs(samples - round(samples)) < 1e-6):
        raise WrapError(f"frames of {frame_seconds!r} s are {samples:.9g} samples: a whole number is needed")
    return round(samples)


def _read_centroids(path: Path) -> Float32:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise WrapError(f"{path} is no .npy of centroids: {error}") from error
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind != "f" or not np.isfinite(array).all():
        found = f"{array.dtype} {[*array.shape]}" if isinstance(array, np.ndarray) else type(array).__name__
        raise WrapError(f"{path} holds {found}: finite floats [K, dim] are needed")
    return np.asarray(array, np.float32)


def _hear(encoder: ForeignEncoder, files: Sequence[Path], frames: int) -> _Heard:
    """About so many frames, in equal parts of a random choice of the files as far as these are long enough."""
    chosen = [files[i] for i in np.random.default_rng(0).permutation(len(files))[:MOST_FILES]]
    # The small ones first: what they lack, the larger ones give.
    left = sorted(chosen, key=lambda file: (file.stat().st_size if file.is_file() else 0, str(file)))
    window = max(1, round(WINDOW_S * SAMPLE_RATE) // encoder.frame_samples) * encoder.frame_samples
    parts: list[Float32] = [np.zeros((0, encoder.dim), np.float32)]
    failed: dict[Path, str] = {}
    while left and frames > 0:
        share = -(-frames // len(left))
        file = left.pop(0)
        try:
            for samples in audio.read_chunks(file, window):
                parts.append(encoder.features(samples[: share * encoder.frame_samples]))
                share -= len(parts[-1])
                frames -= len(parts[-1])
                if share <= 0:
                    break
        except audio.AudioError as error:
            failed[file] = str(error)
    features = np.concatenate(parts)
    if not np.isfinite(features).all():
        raise WrapError(f"{encoder.path} gives values that are not finite")
    return _Heard(features, failed)


def _unit(rows: Float32) -> Float32:
    """Rows at unit length, as the graph makes them: one without a direction gets the first axis."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    first = np.eye(1, rows.shape[1], dtype=np.float32)
    return np.where(length < LEAST_LENGTH, first, rows / np.maximum(length, LEAST_LENGTH)).astype(np.float32)


def _assemble(encoder: ForeignEncoder, mean: Float32, codebook: Float32, metadata: dict[str, str]) -> onnx.ModelProto:
    """The encoder's graph between a head and a tail of ours, of operators that are alike in every opset it may have."""
    g = GraphBuilder()

    def number(value: int) -> str:
        return g.constant(f"number_{value}", np.array(value, np.int64))

    def side(x: str, axis: int) -> str:
        return g.op("Gather", g.op("Shape", x), number(axis), axis=0)

    # A clip that is shorter than the encoder takes is followed by silence.
    lacking = g.op("Sub", g.axes(0, encoder.least_samples), g.op("Shape", "waveform"))
    pads = g.op("Concat", g.axes(0, 0), g.op("Max", lacking, g.axes(0, 0)), axis=0)
    g.op("Pad", "waveform", pads, out=encoder.input)
    head = len(g.nodes)

    frames = g.op("Div", side("waveform", 1), number(encoder.frame_samples))
    last = g.op("Sub", side(encoder.output, 1), number(1))
    rows = g.op("Min", g.op("Range", number(0), frames, number(1)), last)
    x = g.op("Sub", g.op("Gather", encoder.output, rows, axis=1), g.constant("mean", mean))
    length = g.op("Sqrt", g.op("ReduceSum", g.op("Mul", x, x), g.axes(-1), keepdims=1))
    least = g.scalar("least_length", LEAST_LENGTH)
    first = g.constant("first_axis", np.eye(1, encoder.dim, dtype=np.float32)[0])
    unit = g.op("Div", x, g.op("Max", length, least))
    g.ids(g.op("Where", g.op("Less", length, least), first, unit, out="embeddings"), codebook)

    interface = (
        ("waveform", TensorProto.FLOAT, ["samples"]), ("ids", TensorProto.INT64, ["frames"]),
        ("embeddings", TensorProto.FLOAT, ["frames", encoder.dim]),
    )  # fmt: skip
    values = [helper.make_tensor_value_info(name, kind, [encoder.batch, *sides]) for name, kind, sides in interface]
    model = encoder.between(g.nodes[:head], g.nodes[head:])
    model.graph.name = metadata["name"]
    model.graph.input.extend(values[:1])
    model.graph.output.extend(values[1:])
    model.graph.initializer.extend(g.constants.values())
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    return model
