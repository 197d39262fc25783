"""Checkpoint to one ONNX file: front end, encoder, codebook and metadata, written node by node without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from safetensors import safe_open

from model import attention, convolution
from model.codebook import Codebook
from model.encoder import (
    FRAME_SAMPLES,
    FRAME_SECONDS,
    AttentionShape,
    EncoderShape,
    shape_from_json,
    shape_to_json,
)
from model.frontend import HOP, PAD, FrontEnd
from model.graph import Bits, GraphBuilder, Weights, write_model


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
        shape = shape_from_json(file.metadata()["shape"])
        tensors = {name: file.get_tensor(name).astype(np.float32) for name in file.keys()}  # noqa: SIM118
    for name, sides in shape.parameters():
        if name not in tensors or tensors[name].shape != sides:
            found = tensors[name].shape if name in tensors else "nothing"
            raise ExportError(f"{path}: {name} should have shape {sides}, found {found}")
    return shape, tensors


def _front_end(g: GraphBuilder, spec: FrontEnd) -> str:
    """`FrontEnd.log_mel` of `waveform` [batch, samples], of whole frames: [batch, mels, 1, 4 * frames]."""
    energy = g.mel_energy("waveform", spec.basis, spec.bank, HOP, PAD)
    steps = g.op("Div", g.op("Shape", "waveform", start=1, end=2), g.axes(FRAME_SAMPLES))
    energy = g.op("Slice", energy, g.axes(0), g.op("Mul", steps, g.axes(FRAME_SAMPLES // HOP)), g.axes(3))
    log = g.op("Log", g.op("Add", energy, g.scalar("floor", spec.floor)))
    return g.op("Mul", g.op("Sub", log, g.scalar("mel_mean", spec.mean)), g.scalar("mel_scale", spec.scale))


def build(
    shape: EncoderShape, weights: Weights, codebook: Codebook, description: Description, bits: Bits = 32
) -> onnx.ModelProto:
    """The whole graph: `waveform` [batch, samples] to `ids` and `embeddings`, checked.

    `bits` are those in which weights are stored; what is computed is float32 either way.
    """
    g = GraphBuilder(bits)
    mel = _front_end(g, shape.FRONT_END)
    if isinstance(shape, AttentionShape):
        embedding = attention.encode(g, mel, shape, weights)
    else:
        embedding = convolution.encode(g, mel, shape, weights)
    g.ids(g.embeddings(embedding), codebook.centroids)
    if codebook.pq is not None:
        g.constant("pq", codebook.pq)
    metadata = {
        **vars(description),
        "frame_seconds": repr(FRAME_SECONDS),
        "context": "bounded",
        "left_context_samples": str(shape.context_samples),
        "right_context_samples": str(shape.context_samples),
        "encoder": shape_to_json(shape),
    }
    return g.tokenizer(description.name, codebook.dim, metadata)


def export(weights_path: Path, codebook: Codebook, description: Description, out: Path, bits: Bits = 32) -> None:
    """Write the tokenizer of a checkpoint and a codebook to `out`; an unfinished file never has that name."""
    shape, weights = read_weights(weights_path)
    write_model(build(shape, weights, codebook, description, bits), out)
