"""Checkpoint to one ONNX file: front end, encoder, codebook and metadata, written node by node without torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors import safe_open

from model import frontend
from model.codebook import Codebook
from model.encoder import FRAME_SECONDS, STEM_PAD, STEM_STRIDE, EncoderShape

OPSET = 20  # the first with Gelu
IR_VERSION = 9

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Description:
    """What the file will say of itself; the rest of the contract's metadata follows from the encoder."""

    name: str
    version: str
    licence: str
    trained_on: str


class ExportError(Exception):
    """Weights that do not belong to the encoder they claim."""

    code = "export_failed"


def read_weights(path: Path) -> tuple[EncoderShape, dict[str, npt.NDArray[np.float32]]]:
    """Shape and parameters of a student checkpoint (safetensors). Raises ExportError where a tensor is amiss."""
    with safe_open(path, "numpy") as file:
        shape = EncoderShape(**json.loads(file.metadata()["shape"]))
        tensors = {name: file.get_tensor(name).astype(np.float32) for name in file.keys()}  # noqa: SIM118
    for name, sides in shape.parameters():
        if name not in tensors or tensors[name].shape != sides:
            found = tensors[name].shape if name in tensors else "nothing"
            raise ExportError(f"{path}: {name} should have shape {sides}, found {found}")
    return shape, tensors


class _Graph:
    """Nodes and constants under construction; every method returns the name of what it made."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, value: Array) -> str:
        self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def scalar(self, name: str, value: float) -> str:
        return self.constant(name, np.array(value, np.float32))

    def axes(self, *values: int) -> str:
        return self.constant("axes_" + "_".join(str(v) for v in values), np.array(values, np.int64))

    def op(self, kind: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        name = out or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name


def _front_end(g: _Graph) -> str:
    """`frontend.log_mel` of `waveform` [batch, samples]: [batch, MELS, 1, frames]."""
    bins = frontend.FFT // 2 + 1
    basis = frontend.fourier_basis(frontend.WINDOW, frontend.FFT)[:, None, None]
    bank = frontend.mel_bank(frontend.MELS, frontend.FFT, frontend.LOW_HZ, frontend.HIGH_HZ)[:, :, None, None]
    wave = g.op("Unsqueeze", "waveform", g.axes(1, 2))
    spectrum = g.op(
        "Conv", wave, g.constant("fourier_basis", basis), strides=[1, frontend.HOP], pads=[0, frontend.PAD] * 2
    )
    square = g.op("Mul", spectrum, spectrum)
    # Real and imaginary parts share their filters, so the sum of squares is part of the mel product.
    twice = np.concatenate([bank, bank], axis=1)
    assert twice.shape[1] == 2 * bins
    energy = g.op("Conv", square, g.constant("mel_bank", twice))
    log = g.op("Log", g.op("Add", energy, g.scalar("floor", frontend.FLOOR)))
    return g.op("Mul", g.op("Sub", log, g.scalar("mel_mean", frontend.MEAN)), g.scalar("mel_scale", frontend.SCALE))


def _encoder(g: _Graph, x: str, shape: EncoderShape, weights: dict[str, npt.NDArray[np.float32]]) -> str:
    """Unit embeddings [batch, frames, dim] of the front end's output."""

    def parameter(name: str) -> str:
        return g.constant(name, weights[name])

    def convolution(x: str, name: str, **attributes: Any) -> str:
        weight = g.constant(f"{name}.weight", weights[f"{name}.weight"][:, :, None])
        return g.op("Conv", x, weight, parameter(f"{name}.bias"), **attributes)

    def linear(x: str, name: str) -> str:
        weight = g.constant(f"{name}.weight", weights[f"{name}.weight"].T)
        return g.op("Add", g.op("MatMul", x, weight), parameter(f"{name}.bias"))

    def norm(x: str, name: str) -> str:
        return g.op(
            "LayerNormalization", x, parameter(f"{name}.weight"), parameter(f"{name}.bias"), axis=-1, epsilon=1e-5
        )

    for stem in ("stem.0", "stem.1"):
        x = g.op("Gelu", convolution(x, stem, strides=[1, STEM_STRIDE], pads=[0, STEM_PAD] * 2))
    # [batch, width, 1, frames] for the convolutions, [batch, frames, width] for all that is done per frame.
    x = g.op("Transpose", g.op("Squeeze", x, g.axes(2)), perm=[0, 2, 1])
    reach = shape.kernel // 2
    for i in range(shape.blocks):
        y = g.op("Unsqueeze", g.op("Transpose", x, perm=[0, 2, 1]), g.axes(2))
        y = convolution(y, f"blocks.{i}.depthwise", group=shape.width, pads=[0, reach] * 2)
        y = g.op("Transpose", g.op("Squeeze", y, g.axes(2)), perm=[0, 2, 1])
        y = linear(norm(y, f"blocks.{i}.norm"), f"blocks.{i}.expand")
        y = linear(g.op("Gelu", y), f"blocks.{i}.contract")
        x = g.op("Add", x, g.op("Mul", y, parameter(f"blocks.{i}.scale")))
    x = linear(norm(x, "norm"), "head")
    length = g.op("ReduceL2", x, g.axes(-1), keepdims=1)
    return g.op("Div", x, g.op("Max", length, g.scalar("least_length", 1e-12)), out="embeddings")


def build(
    shape: EncoderShape, weights: dict[str, npt.NDArray[np.float32]], codebook: Codebook, description: Description
) -> onnx.ModelProto:
    """The whole graph: `waveform` [batch, samples] to `ids` and `embeddings`, checked."""
    g = _Graph()
    embeddings = _encoder(g, _front_end(g), shape, weights)
    g.constant("codebook", codebook.centroids)
    similarity = g.op("MatMul", embeddings, g.op("Transpose", "codebook", perm=[1, 0]))
    g.op("ArgMax", similarity, axis=-1, keepdims=0, out="ids")
    if codebook.pq is not None:
        g.constant("pq", codebook.pq)
    graph = helper.make_graph(
        g.nodes,
        description.name,
        [helper.make_tensor_value_info("waveform", TensorProto.FLOAT, ["batch", "samples"])],
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "frames"]),
            helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["batch", "frames", codebook.dim]),
        ],
        list(g.constants.values()),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    helper.set_model_props(
        model,
        {
            **vars(description),
            "frame_seconds": repr(FRAME_SECONDS),
            "context": "bounded",
            "left_context_samples": str(shape.context_samples),
            "right_context_samples": str(shape.context_samples),
        },
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def export(weights_path: Path, codebook: Codebook, description: Description, out: Path) -> None:
    """Write the tokenizer of a checkpoint and a codebook to `out`; an unfinished file never has that name."""
    shape, weights = read_weights(weights_path)
    blob = build(shape, weights, codebook, description).SerializeToString()
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".partial")
    partial.write_bytes(blob)
    partial.replace(out)
