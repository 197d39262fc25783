"""An ONNX graph under construction, and what every tokenizer file has in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 20  # the first with Gelu
IR_VERSION = 9

SCALE = ".scale_of_8_bits"  # after the name of what is stored so
LEAST_COMPACT = 4_096  # numbers: smaller tensors are stored as they are

Array = npt.NDArray[np.generic]
Float32 = npt.NDArray[np.float32]
Weights = Mapping[str, Float32]
Bits = Literal[8, 32]
Ranges = Mapping[str, tuple[float, float]]

WEIGHT_LIMIT = 63  # of weights that are multiplied in 8 bits: with 127 the sums of some CPUs (without VNNI) saturate


class GraphBuilder:
    """Nodes and constants under construction; every method returns the name of what it made.

    With 8 `bits` the weights of `layer` and `convolution` are stored by `compact`. A layer of which `ranges` has the
    least and the greatest number that goes in is computed in 8 bits too, by `product_of_8_bits`.
    """

    def __init__(self, bits: Bits = 32, ranges: Ranges | None = None) -> None:
        self.bits = bits
        self.ranges = ranges or {}
        self.layer_inputs: dict[str, str] = {}  # what goes into each layer, by the layer's name
        self.rounded: dict[str, str] = {}  # what has been rounded to 8 bits, by what it was
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, value: Array) -> str:
        """An initialiser; the same name again replaces it."""
        self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def compact(self, name: str, value: Float32) -> str:
        """An initialiser in 8 bits with a scale per row, and the float32 that ONNX Runtime makes of it when it loads.

        `value` [rows, …] is what `unpacked` reads back, but for the rounding.
        """
        scale = np.maximum(np.abs(value.reshape(len(value), -1)).max(1), 1e-12) / 127.0
        scale = scale.reshape(-1, *[1] * (value.ndim - 1)).astype(np.float32)
        whole = self.op("Cast", self.constant(name, np.round(value / scale).astype(np.int8)), to=TensorProto.FLOAT)
        return self.op("Mul", whole, self.constant(name + SCALE, scale))

    def scalar(self, name: str, value: float) -> str:
        """A float32 initialiser without axes."""
        return self.constant(name, np.array(value, np.float32))

    def axes(self, *values: int) -> str:
        """An int64 initialiser: axes, shapes, repeats or bounds. Equal ones are stored once."""
        return self.constant("axes_" + "_".join(str(v) for v in values), np.array(values, np.int64))

    def op(self, kind: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        """A node with one output."""
        name = out or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def linear(self, x: str, name: str, weight: Float32, bias: Float32 | None) -> str:
        """x @ weight.T + bias, with `weight` [out, in] as torch keeps it."""
        y = self.op("MatMul", x, self.constant(f"{name}.weight", weight.T))
        return y if bias is None else self.op("Add", y, self.constant(f"{name}.bias", bias))

    def convolution(self, x: str, name: str, weights: Weights, **attributes: Any) -> str:
        """A convolution over time of [batch, channels, 1, time] with the parameters `name`.weight and .bias."""
        weight = self._stored(f"{name}.weight", weights[f"{name}.weight"][:, :, None])
        return self.op("Conv", x, weight, self.constant(f"{name}.bias", weights[f"{name}.bias"]), **attributes)

    def layer(self, x: str, name: str, weights: Weights) -> str:
        """A linear layer with the parameters `name`.weight, stored as torch keeps it, and, if there is one, .bias."""
        weight = weights[f"{name}.weight"]
        self.layer_inputs[name] = x
        if name in self.ranges:
            y = self.product_of_8_bits(x, name, weight)
        else:
            y = self.op("MatMul", x, self.op("Transpose", self._stored(f"{name}.weight", weight), perm=[1, 0]))
        bias = weights.get(f"{name}.bias")
        return y if bias is None else self.op("Add", y, self.constant(f"{name}.bias", bias))

    def product_of_8_bits(self, x: str, name: str, weight: Float32) -> str:
        """x @ weight.T of `x` rounded to 256 steps of its range and of weights with a scale for each row.

        Written as ONNX's pairs of rounding and its inverse, of which ONNX Runtime makes one product of whole numbers.
        """
        scale = (np.maximum(np.abs(weight).max(1), 1e-12) / WEIGHT_LIMIT).astype(np.float32)
        whole = np.round(weight / scale[:, None]).astype(np.int8)
        stored = self.constant(f"{name}.weight", whole.T), self.constant(f"{name}.weight" + SCALE, scale)
        return self.op("MatMul", self._rounded(x, *self.ranges[name]), self.op("DequantizeLinear", *stored, axis=1))

    def _rounded(self, x: str, low: float, high: float) -> str:
        if x not in self.rounded:
            low, high = min(low, 0.0), max(high, 0.0)  # zero is among the steps
            step = max(high - low, 1e-12) / 255.0
            zero = self.constant(f"{x}.zero", np.array(round(-low / step), np.uint8))
            steps = self.scalar(f"{x}.step", step), zero
            self.rounded[x] = self.op("DequantizeLinear", self.op("QuantizeLinear", x, *steps), *steps)
        return self.rounded[x]

    def _stored(self, name: str, weight: Float32) -> str:
        compact = self.bits == 8 and weight.size >= LEAST_COMPACT
        return self.compact(name, weight) if compact else self.constant(name, weight)

    def norm(self, x: str, name: str, weights: Weights) -> str:
        """Layer normalisation over the last axis with the parameters `name`.weight and .bias."""
        scale, shift = (self.constant(f"{name}.{part}", weights[f"{name}.{part}"]) for part in ("weight", "bias"))
        return self.op("LayerNormalization", x, scale, shift, axis=-1, epsilon=1e-5)

    def mel_energy(self, waveform: str, basis: Float32, bank: Float32, hop: int, pad: int = 0) -> str:
        """Mel energies [batch, mels, 1, frames] of a waveform [batch, samples].

        `basis` is a `frontend.fourier_basis`, `bank` a `frontend.mel_bank`.
        """
        wave = self.op("Unsqueeze", waveform, self.axes(1, 2))
        filters = self.constant("fourier_basis", basis[:, None, None])
        spectrum = self.op("Conv", wave, filters, strides=[1, hop], pads=[0, pad] * 2)
        square = self.op("Mul", spectrum, spectrum)
        # Real and imaginary parts share their filters, so the sum of squares is part of the mel product.
        twice = np.concatenate([bank, bank], axis=1)[:, :, None, None]
        assert twice.shape[1] == len(basis)
        return self.op("Conv", square, self.constant("mel_bank", twice))

    def embeddings(self, x: str) -> str:
        """The output `embeddings`: `x` with its last axis at unit length."""
        length = self.op("ReduceL2", x, self.axes(-1), keepdims=1)
        return self.op("Div", x, self.op("Max", length, self.scalar("least_length", 1e-12)), out="embeddings")

    def ids(self, embeddings: str, centroids: Float32) -> str:
        """The output `ids`, nearest of the `centroids` [K, dim], which become the initialiser `codebook`."""
        self.constant("codebook", centroids)
        similarity = self.op("MatMul", embeddings, self.op("Transpose", "codebook", perm=[1, 0]))
        return self.op("ArgMax", similarity, axis=-1, keepdims=0, out="ids")

    def tokenizer(
        self, name: str, dim: int, metadata: Mapping[str, str], batch: str | int = "batch"
    ) -> onnx.ModelProto:
        """The model of a finished graph, from `waveform` to `ids` and `embeddings`, checked.

        `batch` is the name of the batch axis, or its size where it is fixed.
        """
        model = self.model([], batch)
        model.graph.name = name
        model.graph.output.extend(
            [
                helper.make_tensor_value_info("ids", TensorProto.INT64, [batch, "frames"]),
                helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, [batch, "frames", dim]),
            ]
        )
        helper.set_model_props(model, dict(metadata))
        onnx.checker.check_model(model, full_check=True)
        return model

    def model(self, outputs: Sequence[tuple[str, int]], batch: str | int = "batch") -> onnx.ModelProto:
        """The model as it is, from `waveform` to these outputs, float32 with so many axes each."""
        graph = helper.make_graph(
            self.nodes,
            "graph",
            [helper.make_tensor_value_info("waveform", TensorProto.FLOAT, [batch, "samples"])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * axes) for name, axes in outputs],
            list(self.constants.values()),
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def unpacked(arrays: Mapping[str, Array], name: str) -> Array | None:
    """An initialiser as float32 [rows, …] if it was stored in 8 bits, as it is otherwise; None where there is none."""
    array, scale = arrays.get(name), arrays.get(name + SCALE)
    if array is None or scale is None:
        return array
    if scale.ndim == 1:  # of a product of 8 bits, whose weights lie as they are multiplied
        return array.T.astype(np.float32) * scale.astype(np.float32)[:, None]
    return array.astype(np.float32) * scale.astype(np.float32)


def multiplies_in_8_bits(model: onnx.ModelProto) -> bool:
    """Whether a file of ours has products of 8 bits."""
    return any(node.op_type == "QuantizeLinear" for node in model.graph.node)


def write_model(model: onnx.ModelProto, out: Path) -> None:
    """Write a model to `out`; an unfinished file never has that name."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".partial")
    partial.write_bytes(model.SerializeToString())
    partial.replace(out)
