"""Checkpoint to one ONNX file: front end, encoder, codebook and metadata, written node by node without torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from safetensors import safe_open

from model import frontend
from model.codebook import Codebook
from model.encoder import FRAME_SECONDS, STEM_PAD, STEM_STRIDE, EncoderShape
from model.graph import GraphBuilder, write_model


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


def _front_end(g: GraphBuilder) -> str:
    """`frontend.log_mel` of `waveform` [batch, samples]: [batch, MELS, 1, frames]."""
    basis = frontend.fourier_basis(frontend.WINDOW, frontend.FFT)
    bank = frontend.mel_bank(frontend.MELS, frontend.FFT, frontend.LOW_HZ, frontend.HIGH_HZ)
    energy = g.mel_energy("waveform", basis, bank, frontend.HOP, frontend.PAD)
    log = g.op("Log", g.op("Add", energy, g.scalar("floor", frontend.FLOOR)))
    return g.op("Mul", g.op("Sub", log, g.scalar("mel_mean", frontend.MEAN)), g.scalar("mel_scale", frontend.SCALE))


def _encoder(g: GraphBuilder, x: str, shape: EncoderShape, weights: dict[str, npt.NDArray[np.float32]]) -> str:
    """Unit embeddings [batch, frames, dim] of the front end's output."""

    def convolution(x: str, name: str, **attributes: Any) -> str:
        weight = g.constant(f"{name}.weight", weights[f"{name}.weight"][:, :, None])
        return g.op("Conv", x, weight, g.constant(f"{name}.bias", weights[f"{name}.bias"]), **attributes)

    def linear(x: str, name: str) -> str:
        return g.linear(x, name, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x: str, name: str) -> str:
        return g.norm(x, name, weights[f"{name}.weight"], weights[f"{name}.bias"])

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
        x = g.op("Add", x, g.op("Mul", y, g.constant(f"blocks.{i}.scale", weights[f"blocks.{i}.scale"])))
    return g.embeddings(linear(norm(x, "norm"), "head"))


def build(
    shape: EncoderShape, weights: dict[str, npt.NDArray[np.float32]], codebook: Codebook, description: Description
) -> onnx.ModelProto:
    """The whole graph: `waveform` [batch, samples] to `ids` and `embeddings`, checked."""
    g = GraphBuilder()
    g.ids(_encoder(g, _front_end(g), shape, weights), codebook.centroids)
    if codebook.pq is not None:
        g.constant("pq", codebook.pq)
    metadata = {
        **vars(description),
        "frame_seconds": repr(FRAME_SECONDS),
        "context": "bounded",
        "left_context_samples": str(shape.context_samples),
        "right_context_samples": str(shape.context_samples),
    }
    return g.tokenizer(description.name, codebook.dim, metadata)


def export(weights_path: Path, codebook: Codebook, description: Description, out: Path) -> None:
    """Write the tokenizer of a checkpoint and a codebook to `out`; an unfinished file never has that name."""
    shape, weights = read_weights(weights_path)
    write_model(build(shape, weights, codebook, description), out)
