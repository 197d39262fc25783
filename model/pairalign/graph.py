"""The `pairalign` tokenizer as one ONNX file: the encoder's graph, and the decoder over windows, which are stitched."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from model.graph import write_model
from model.pairalign.loop import CODEBOOK, PREFIX, Builder, Loop
from model.pairalign.part import Part, PartError
from model.pairalign.shape import DecoderShape
from model.tokenizer import DEFAULT_WEIGHTS, EARLIER_WEIGHTS

QUANTISER = "pq"  # the initialiser by which a tokenizer file has its product quantiser
BEAM, MOST_BEAMS = 1, 16
ENCODERS = (DEFAULT_WEIGHTS, EARLIER_WEIGHTS)  # the shipped part was trained over the second


def build(
    part: Part, out: Path, *, encoder: Path | None = None, rate: float | None = None, beam: int | None = None
) -> None:
    """Write the tokenizer to `out`: `waveform` float32 [batch, samples], context `segment`, tokens `generated`.

    `encoder` is the tokenizer that the part was trained over; without it that of ENCODERS which it was. `rate` is
    another setting of the length knob than the part's own (`Part.rate_row`): 0 writes most tokens. `beam` is the number
    of sequences that are followed, 1 for greedy decoding; without it BEAM. Raises PartError where the part belongs to
    another encoder or has no such rate or beam, OSError where a file cannot be read or written.
    """
    blob = _encoder_of(part, ENCODERS if encoder is None else (encoder,))
    rate, beam = part.rate if rate is None else rate, BEAM if beam is None else beam
    if not 1 <= beam <= MOST_BEAMS:
        raise PartError(f"there is no beam of {beam}: 1 to {MOST_BEAMS}")
    model = onnx.load_model_from_string(blob)
    entries = {entry.key: entry.value for entry in model.metadata_props}
    nodes = [node for node in model.graph.node if "ids" not in node.output]
    g = Builder(PREFIX)
    _ids(g, part, rate, beam)
    g.constants[CODEBOOK] = onnx.numpy_helper.from_array(part.codebook.centroids, CODEBOOK)
    if part.codebook.pq is not None:
        g.constants[QUANTISER] = onnx.numpy_helper.from_array(part.codebook.pq, QUANTISER)
    others = [tensor for tensor in model.graph.initializer if tensor.name not in (CODEBOOK, QUANTISER)]
    del model.graph.node[:], model.graph.initializer[:], model.metadata_props[:]
    model.graph.node.extend([*nodes, *g.nodes])
    model.graph.initializer.extend([*others, *g.constants.values()])
    metadata = {
        **part.description.metadata(), "frame_seconds": entries["frame_seconds"], "context": "segment",
        "left_context_samples": "0", "right_context_samples": "0", "tokens": "generated", "rate": f"{rate:g}",
        "beam": str(beam),
    }  # fmt: skip
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=False)
    write_model(model, out)


def _encoder_of(part: Part, files: Sequence[Path]) -> bytes:
    """The one of these tokenizers that the part belongs to. Raises PartError where none is."""
    found = {hashlib.sha256(blob := path.read_bytes()).hexdigest(): blob for path in files}
    if part.encoder_sha256 not in found:
        there = ", ".join(f"{path} is {sha256[:12]}" for path, sha256 in zip(files, found, strict=True))
        raise PartError(f"the decoder belongs to the tokenizer {part.encoder_sha256[:12]}, and {there}")
    return found[part.encoder_sha256]


def _ids(g: Builder, part: Part, rate: float, beam: int) -> None:
    """From the encoder's `embeddings` [batch, frames, dim] to the output `ids` int64 [batch, frames]."""
    s = part.shape
    hop = s.window_frames - s.overlap_frames
    batch, frames = g.op("Shape", "embeddings", start=0, end=1), g.op("Shape", "embeddings", start=1, end=2)
    count = g.op("Max", g.op("Div", g.op("Add", frames, g.axes(hop - 1 - s.overlap_frames)), g.axes(hop)), g.axes(1))
    # Frames of each window, and which of them there are.
    number = g.op("Range", g.integer(0), g.op("Squeeze", count), g.integer(1))
    at = g.op("Unsqueeze", g.op("Mul", number, g.axes(hop)), g.axes(1))
    at = g.op("Add", at, g.constant("frame", np.arange(s.window_frames)))
    inside = g.op("Less", at, frames)
    last = g.op("Sub", frames, g.axes(1))
    heard = g.op("Gather", "embeddings", g.op("Min", at, last), axis=1)
    heard = g.op("Reshape", heard, g.axes(-1, s.window_frames, s.dim))  # [windows of all clips, 75, dim]
    every = g.op("Concat", batch, count, g.axes(s.window_frames), axis=0)
    inside = g.op("Reshape", g.op("Expand", inside, every), g.axes(-1, s.window_frames))
    windows = Loop(g, part, rate, beam).ids(heard, inside)
    _stitched(g, s, g.op("Reshape", windows, every), batch, frames)


def _stitched(g: Builder, s: DecoderShape, windows: str, batch: str, frames: str) -> None:
    """`stitching.stitch` of [batch, windows, 75]: the output `ids`."""
    hop, middle, overlap = s.window_frames - s.overlap_frames, s.overlap_frames // 2, s.overlap_frames
    head = g.op("Slice", windows, g.axes(0), g.axes(overlap), g.axes(2))
    tail = g.op("Slice", windows, g.axes(hop), g.axes(s.window_frames), g.axes(2))
    # Of the window before, for each; the first has none and stands for itself, with its cut at its first frame.
    nothing = g.op("Sub", g.op("Slice", head, g.axes(0), g.axes(1), g.axes(1)), g.axes(s.size + 1))
    before = g.op("Concat", nothing, g.op("Slice", tail, g.axes(0), g.axes(-1), g.axes(1)), axis=1)
    distance = np.abs(np.arange(overlap) - middle).astype(np.float32)
    otherwise = np.where(distance == 0, 2.0 * overlap, 4.0 * overlap).astype(np.float32)
    far = g.op("Where", g.op("Equal", head, before), g.constant("distance", distance),
               g.constant("otherwise", otherwise))  # fmt: skip
    cut = g.op("ArgMin", far, axis=2, keepdims=1)
    place = g.constant("place", np.arange(overlap))
    follows = g.op("Or", g.op("Not", g.op("Less", place, cut)), g.op("Less", before, g.integer(0)))
    start = g.op("Where", follows, head, before)
    inner = g.op("Slice", windows, g.axes(overlap), g.axes(hop), g.axes(2))
    line = g.op("Reshape", g.op("Concat", start, inner, axis=2), g.op("Concat", batch, g.axes(-1), axis=0))
    end = g.op("Squeeze", g.op("Slice", tail, g.axes(-1), g.axes(2**31), g.axes(1)), g.axes(1))
    g.op("Slice", g.op("Concat", line, end, axis=1), g.axes(0), frames, g.axes(1), out="ids")
