"""Checkpoint to one ONNX file: front end, encoder, codebook and metadata, written node by node without torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper
from safetensors import safe_open

from model import attention, convolution
from model.audio import Samples
from model.codebook import Codebook
from model.declaration import SCORE_MAP, ScoreMap
from model.encoder import (
    FRAME_SAMPLES,
    FRAME_SECONDS,
    AttentionShape,
    EncoderShape,
    shape_from_json,
    shape_to_json,
)
from model.frontend import HOP, PAD, FrontEnd
from model.graph import Bits, GraphBuilder, Ranges, Weights, write_model
from model.tokenizer import open_session


@dataclass(frozen=True)
class Description:
    """What the file will say of itself; the rest of the contract's metadata follows from the encoder.

    `score_map` are the three numbers of `TokenizerInfo.score_map`, where they are known.
    """

    name: str
    version: str
    licence: str
    trained_on: str
    score_map: ScoreMap | None = None

    def metadata(self) -> dict[str, str]:
        """The entries of the file's metadata."""
        texts = {"name": self.name, "version": self.version, "licence": self.licence, "trained_on": self.trained_on}
        return texts if self.score_map is None else texts | {SCORE_MAP: " ".join(map(repr, self.score_map))}


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


def _encoded(g: GraphBuilder, shape: EncoderShape, weights: Weights) -> str:
    """Embeddings, not of unit length, of `waveform`."""
    mel = _front_end(g, shape.FRONT_END)
    encode = attention.encode if isinstance(shape, AttentionShape) else convolution.encode
    return encode(g, mel, shape, weights)  # type: ignore[arg-type]


def measure_ranges(shape: EncoderShape, weights: Weights, sounds: Iterable[Samples]) -> Ranges:
    """The least and the greatest number that goes into each layer of an encoder while it hears these sounds."""
    g = GraphBuilder()
    _encoded(g, shape, weights)
    names = list(g.layer_inputs.values())
    session = open_session(g.model([(name, 3) for name in names]).SerializeToString())
    low, high = np.full(len(names), np.inf), np.full(len(names), -np.inf)
    for samples in sounds:
        inside = session.run(names, {"waveform": samples[None]})
        low = np.minimum(low, [x.min() for x in inside])
        high = np.maximum(high, [x.max() for x in inside])
    return {layer: (float(a), float(b)) for layer, a, b in zip(g.layer_inputs, low, high, strict=True)}


def build(
    shape: EncoderShape, weights: Weights, codebook: Codebook, description: Description, bits: Bits = 32,
    ranges: Ranges | None = None,
) -> onnx.ModelProto:  # fmt: skip
    """The whole graph: `waveform` [batch, samples] to `ids` and `embeddings`, checked.

    `bits` are those in which weights are stored. What is computed is float32, but for the layers of which `ranges`
    tells what goes in (see `measure_ranges`): their products are of 8 bits. The ranges are fixed, so that a chunk gets
    what it gets in one pass.
    """
    g = GraphBuilder(bits, ranges)
    embedding = _encoded(g, shape, weights)
    g.ids(g.embeddings(embedding), codebook.centroids)
    if codebook.pq is not None:
        g.constant("pq", codebook.pq)
    metadata = {
        **description.metadata(),
        "frame_seconds": repr(FRAME_SECONDS),
        "context": "bounded",
        "left_context_samples": str(shape.context_samples),
        "right_context_samples": str(shape.context_samples),
        "encoder": shape_to_json(shape),
    }
    return g.tokenizer(description.name, codebook.dim, metadata)


def stamp(path: Path, score_map: ScoreMap) -> None:
    """Write the score map into a tokenizer's file, which is another file from then on: archives tell by its hash."""
    model = onnx.load(str(path))
    entries = {entry.key: entry.value for entry in model.metadata_props}
    helper.set_model_props(model, entries | {SCORE_MAP: " ".join(map(repr, score_map))})
    write_model(model, path)


def export(
    weights_path: Path, codebook: Codebook, description: Description, out: Path, bits: Bits = 32,
    sounds: Iterable[Samples] | None = None,
) -> None:  # fmt: skip
    """Write the tokenizer of a checkpoint and a codebook to `out`; an unfinished file never has that name.

    With `sounds`, waveforms float32 [samples] like those that it will hear, it multiplies in 8 bits.
    """
    shape, weights = read_weights(weights_path)
    ranges = None if sounds is None else measure_ranges(shape, weights, sounds)
    write_model(build(shape, weights, codebook, description, bits, ranges), out)
