"""The convolutional encoder as nodes of a graph."""

from __future__ import annotations

from model.encoder import STEM_PAD, STEM_STRIDE, ConvolutionShape
from model.graph import GraphBuilder, Weights


def encode(g: GraphBuilder, x: str, shape: ConvolutionShape, weights: Weights) -> str:
    """Embeddings [batch, frames, dim], not of unit length, of log-mels [batch, mels, 1, 4 * frames]."""
    for name in ("stem.0", "stem.1"):
        x = g.op("Gelu", g.convolution(x, name, weights, strides=[1, STEM_STRIDE], pads=[0, STEM_PAD] * 2))
    # [batch, width, 1, frames] for the convolutions, [batch, frames, width] for all that is done per frame.
    x = g.op("Transpose", g.op("Squeeze", x, g.axes(2)), perm=[0, 2, 1])
    reach = shape.kernel // 2
    for i in range(shape.blocks):
        block = f"blocks.{i}"
        y = g.op("Unsqueeze", g.op("Transpose", x, perm=[0, 2, 1]), g.axes(2))
        y = g.convolution(y, f"{block}.depthwise", weights, group=shape.width, pads=[0, reach] * 2)
        y = g.op("Transpose", g.op("Squeeze", y, g.axes(2)), perm=[0, 2, 1])
        y = g.layer(g.norm(y, f"{block}.norm", weights), f"{block}.expand", weights)
        y = g.layer(g.op("Gelu", y), f"{block}.contract", weights)
        x = g.op("Add", x, g.op("Mul", y, g.constant(f"{block}.scale", weights[f"{block}.scale"])))
    return g.layer(g.norm(x, "norm", weights), "head", weights)
