"""The `accurate` tokenizer: the published Whisper encoder and our tuned part, put together as one ONNX file.

The blocks are changed by low-rank updates (Hu et al. 2021, "LoRA") and look at the clip alone, not at a window of 30 s
as the encoder was trained. docs/decisions.md has the trials.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx

from model.audio import SAMPLE_RATE
from model.encoder import FRAME_SAMPLES, FRAME_SECONDS
from model.frontend import fourier_basis, mel_bank
from model.graph import GraphBuilder, write_model
from model.tuned import DIM, read_tuned
from model.whisper import (
    BLOCKS,
    FFT,
    HEADS,
    HOP,
    MELS,
    SHA256,
    TAIL_SAMPLES,
    WIDTH,
    WINDOW_FRAMES,
    read_encoder,
)  # fmt: skip

ROWS = 2  # of the encoder to a frame

Float32 = npt.NDArray[np.float32]
Precision = Literal["fp32", "int8"]


def front_end(g: GraphBuilder, sound: str) -> str:
    """Whisper's log-mel of [batch, samples]: [batch, 80, samples // 160]."""
    padded = g.op("Pad", sound, g.axes(0, FFT // 2, 0, FFT // 2), mode="reflect")
    energy = g.mel_energy(padded, fourier_basis(FFT, FFT), mel_bank(MELS, FFT, 0.0, SAMPLE_RATE / 2), HOP)
    energy = g.op("Squeeze", g.op("Slice", energy, g.axes(0), g.axes(-1), g.axes(3)), g.axes(2))
    log = g.op("Log", g.op("Max", energy, g.scalar("floor", 1e-10)))
    log = g.op("Mul", log, g.scalar("log10", 1.0 / np.log(10.0)))
    floor = g.op("Sub", g.op("ReduceMax", log, g.axes(1, 2), keepdims=1), g.scalar("range", 8.0))
    return g.op("Mul", g.op("Add", g.op("Max", log, floor), g.scalar("four", 4.0)), g.scalar("quarter", 0.25))


class _Encoder:
    """The encoder's parts as nodes of `g`; positions and counts of rows are worked out when the graph runs."""

    def __init__(self, g: GraphBuilder, weights: Mapping[str, Float32]) -> None:
        self.g = g
        self.weights = weights
        self.products: list[str] = []  # the nodes that int8 quantises

    def encode(self, mel: str, rows: str) -> str:
        """All blocks, of a stretch from the first position on: [batch, 80, more than 2 rows] to [batch, rows, 512]."""
        g, w = self.g, self.weights

        def convolution(x: str, name: str, stride: int) -> str:
            parts = (g.constant(f"{name}.{kind}", w[f"{name}.{kind}"]) for kind in ("weight", "bias"))
            return g.op("Gelu", g.op("Conv", x, *parts, strides=[stride], pads=[1, 1]))

        x = g.op("Transpose", convolution(convolution(mel, "conv1", 1), "conv2", 2), perm=[0, 2, 1])
        position = g.constant("positional_embedding", w["positional_embedding"])
        x = g.op("Slice", x, g.axes(0), rows, g.axes(1))
        x = g.op("Add", x, g.op("Slice", position, g.axes(0), rows, g.axes(0)))
        for i in range(BLOCKS):
            x = self.block(x, f"blocks.{i}")
        return self.norm(x, "ln_post")

    def block(self, x: str, name: str) -> str:
        """A transformer block: [batch, rows, 512] to the same shape."""
        g = self.g
        x = g.op("Add", x, self.attention(self.norm(x, f"{name}.attn_ln"), f"{name}.attn"))
        hidden = g.op("Gelu", self.linear(self.norm(x, f"{name}.mlp_ln"), f"{name}.mlp.0"))
        return g.op("Add", x, self.linear(hidden, f"{name}.mlp.2"))

    def attention(self, x: str, name: str) -> str:
        """All rows of a stretch look at all of them."""
        g = self.g

        def heads(part: str, perm: list[int], scale: float = 1.0) -> str:
            y = g.op("Reshape", self.linear(x, f"{name}.{part}", scale), g.axes(0, -1, HEADS, WIDTH // HEADS))
            return g.op("Transpose", y, perm=perm)

        # The scale is a power of two, so folding it into the query changes no digit.
        query = heads("query", [0, 2, 1, 3], (WIDTH // HEADS) ** -0.5)
        scores = g.op("Softmax", g.op("MatMul", query, heads("key", [0, 2, 3, 1])), axis=-1)
        mixed = g.op("Transpose", g.op("MatMul", scores, heads("value", [0, 2, 1, 3])), perm=[0, 2, 1, 3])
        return self.linear(g.op("Reshape", mixed, g.axes(0, -1, WIDTH)), f"{name}.out")

    def linear(self, x: str, name: str, scale: float = 1.0) -> str:
        """A layer of the encoder, times `scale`."""
        if not name.endswith("mlp.2"):  # what goes into that one has outliers: 8 bits of it cost more than all others
            self.products.append(f"matmul_{len(self.g.nodes)}")
        bias = self.weights.get(f"{name}.bias")
        factor = np.float32(scale)
        return self.g.linear(x, name, self.weights[f"{name}.weight"] * factor, None if bias is None else bias * factor)

    def norm(self, x: str, name: str) -> str:
        """Layer normalisation with the encoder's parameters."""
        return self.g.norm(x, name, self.weights)


def _assemble(g: GraphBuilder, encoder: _Encoder) -> str:
    """The nodes from `waveform` to what the projection is given: [batch, frames, 512]."""
    frames = g.op("Div", g.op("Shape", "waveform", start=1, end=2), g.axes(FRAME_SAMPLES))
    frames = g.op("Min", frames, g.axes(WINDOW_FRAMES))
    rows = g.op("Mul", frames, g.axes(ROWS))
    clip = g.op("Slice", "waveform", g.axes(0), g.op("Mul", frames, g.axes(FRAME_SAMPLES)), g.axes(1))
    x = encoder.encode(front_end(g, g.op("Pad", clip, g.axes(0, 0, 0, TAIL_SAMPLES))), rows)
    x = g.op("Reshape", x, g.axes(0, -1, ROWS, WIDTH))
    return g.op("ReduceMean", x, g.axes(2), keepdims=0)


def build(
    weights: Path, tuned: Path, out: Path, *, precision: Precision = "fp32", expected: str | None = SHA256
) -> None:
    """Write the tokenizer to `out`: `waveform` float32 [batch, samples] of at most 30 s, context `segment`.

    `int8` stores the weights of most linear layers in 8 bits, with a scale per channel, and rounds what goes in by the
    range of each run. So that a clip's range does not depend on another's, such a file takes one clip a run.
    `expected` is the encoder's fingerprint, see `whisper.read_encoder`. Raises EncoderError where the weights are
    amiss, TunedError where the tuned part is, OSError where `out` cannot be written.
    """
    part = read_tuned(tuned)
    encoder_weights = read_encoder(weights, expected)
    for layer, update in part.updates.items():
        encoder_weights[f"blocks.{layer}.weight"] += update
    encoder_weights["ln_post.weight"], encoder_weights["ln_post.bias"] = part.ln_post
    g = GraphBuilder()
    encoder = _Encoder(g, encoder_weights)
    x = g.op("Sub", _assemble(g, encoder), g.constant("projection.mean", part.mean))
    g.ids(g.embeddings(g.linear(x, "projection", part.projection, None)), part.codebook)
    metadata = {
        **part.description.metadata(),
        "frame_seconds": repr(FRAME_SECONDS),
        "context": "segment",
        "left_context_samples": "0",
        "right_context_samples": "0",
    }
    model = g.tokenizer(part.description.name, DIM, metadata, batch="batch" if precision == "fp32" else 1)
    write_model(model if precision == "fp32" else _quantised(model, encoder.products), out)


def _quantised(model: onnx.ModelProto, nodes: list[str]) -> onnx.ModelProto:
    """The model with the weights of these products in 8 bits (dynamic quantisation)."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # The quantiser logs advice to clean the graph up unless it is told that this was done; there is nothing to clean.
    mark = model.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    with tempfile.TemporaryDirectory(prefix="sayagain-") as folder:
        out = Path(folder) / "int8.onnx"
        # Seven bits of range: with eight, the sums of some CPUs (without VNNI) saturate.
        quantize_dynamic(
            model, out, op_types_to_quantize=["MatMul"], nodes_to_quantize=nodes, per_channel=True,
            reduce_range=True, weight_type=QuantType.QInt8,
        )  # fmt: skip
        quantised = onnx.load(str(out))
    model.metadata_props.remove(mark)
    del quantised.metadata_props[:]  # it leaves marks of its own
    quantised.metadata_props.extend(model.metadata_props)
    return quantised
