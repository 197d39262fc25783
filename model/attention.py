"""The attention encoder as nodes of a graph: frames in groups, each of which looks at itself and `reach` to each side.

Groups are a matter of speed alone: which frames a frame looks at does not depend on where its group begins.
"""

from __future__ import annotations

import numpy as np

from model.encoder import CONV_PAD, HIDDEN_FROM, POOL, AttentionShape
from model.graph import GraphBuilder, Weights

END = 2**31 - 1


def encode(g: GraphBuilder, x: str, shape: AttentionShape, weights: Weights) -> str:
    """Embeddings [batch, frames, dim], not of unit length, of log-mels [batch, mels, 1, 4 * frames]."""
    x = g.op("Gelu", g.convolution(x, "stem.0", weights, pads=[0, CONV_PAD] * 2))
    x = g.op("Gelu", g.convolution(x, "stem.1", weights, pads=[0, CONV_PAD] * 2, strides=[1, 2]))
    x = g.op("AveragePool", x, kernel_shape=[1, POOL], strides=[1, POOL])
    x = g.op("Transpose", g.op("Squeeze", x, g.axes(2)), perm=[0, 2, 1])
    x = g.op("Add", x, g.constant("offset", weights["offset"]))
    groups = _Groups(g, x, shape)
    for i in range(shape.blocks):
        block = f"blocks.{i}"
        x = g.op("Add", x, groups.attend(g.norm(x, f"{block}.attention_norm", weights), block, weights))
        y = g.layer(g.norm(x, f"{block}.norm", weights), f"{block}.expand", weights)
        x = g.op("Add", x, g.layer(g.op("Gelu", y), f"{block}.contract", weights))
    return g.layer(g.norm(x, "norm", weights), "head", weights)


class _Groups:
    """Frames in groups of 2 * reach; a group's window is `reach` frames more on each side, two groups in all."""

    def __init__(self, g: GraphBuilder, x: str, shape: AttentionShape) -> None:
        self.g, self.shape = g, shape
        self.size, reach = 2 * shape.reach, shape.reach
        self.frames = g.op("Shape", x, start=1, end=2)
        size = g.axes(self.size)
        whole = g.op("Mul", g.op("Div", g.op("Add", self.frames, g.axes(self.size - 1)), size), size)
        spare = g.op("Sub", whole, self.frames)
        self.to_groups = g.op("Concat", g.axes(0, 0, 0, 0), spare, g.axes(0), axis=0)
        self.to_windows = g.op("Concat", g.axes(0, reach, 0, 0), g.op("Add", spare, g.axes(reach)), g.axes(0), axis=0)
        # Frames that are not there are hidden from all.
        there = g.op("Expand", g.scalar("one", 1.0), g.op("Concat", g.axes(1), self.frames, g.axes(1), axis=0))
        there = g.op("Sub", self._windows(there, 1), "one")
        there = g.op("Mul", there, g.scalar("hide", -HIDDEN_FROM))
        self.there = g.op("Reshape", there, g.axes(1, -1, 1, 1, 2 * self.size))
        distance = np.arange(2 * self.size)[None] - reach - np.arange(self.size)[:, None]
        seen = np.abs(distance) <= reach
        self.index = g.constant("distance_index", np.where(seen, distance + reach, 0).astype(np.int64))
        self.far = g.constant("too_far", np.where(seen, 0.0, HIDDEN_FROM).astype(np.float32))

    def _windows(self, x: str, width: int) -> str:
        """[batch, frames, width] to [batch, groups, 2 * size, width]."""
        g = self.g
        x = g.op("Reshape", g.op("Pad", x, self.to_windows), g.axes(0, -1, self.size, width))
        first = g.op("Slice", x, g.axes(0), g.axes(-1), g.axes(1))
        return g.op("Concat", first, g.op("Slice", x, g.axes(1), g.axes(END), g.axes(1)), axis=2)

    def attend(self, x: str, block: str, weights: Weights) -> str:
        """Attention of one block: [batch, frames, width] to the same shape."""
        g, heads, each = self.g, self.shape.heads, self.shape.width // self.shape.heads

        def split(y: str, frames: int, perm: list[int]) -> str:
            return g.op("Transpose", g.op("Reshape", y, g.axes(0, -1, frames, heads, each)), perm=perm)

        def windows(part: str, perm: list[int]) -> str:
            y = self._windows(g.layer(x, f"{block}.{part}", weights), self.shape.width)
            return split(y, 2 * self.size, perm)

        # The scale is folded into the query, of which it changes no digit where it is a power of two.
        query = g.op("Mul", g.layer(x, f"{block}.query", weights), g.scalar("query_scale", each**-0.5))
        query = split(g.op("Pad", query, self.to_groups), self.size, [0, 1, 3, 2, 4])
        distance = g.constant(f"{block}.distance", weights[f"{block}.distance"])
        preference = g.op("Add", g.op("Gather", distance, self.index, axis=1), self.far)
        scores = g.op("Add", g.op("MatMul", query, windows("key", [0, 1, 3, 4, 2])), preference)
        scores = g.op("Add", scores, self.there)
        # Softmax written out, its sum as a product: a sum over the window in order, whatever the window begins with,
        # where the operator's own depends on where in the window a frame lies.
        shares = g.op("Exp", g.op("Sub", scores, g.op("ReduceMax", scores, g.axes(-1), keepdims=1)))
        total = g.op("MatMul", shares, g.constant("ones", np.ones((2 * self.size, 16), np.float32)))
        total = g.op("Slice", total, g.axes(0), g.axes(1), g.axes(4))
        mixed = g.op("Div", g.op("MatMul", shares, windows("value", [0, 1, 3, 2, 4])), total)
        mixed = g.op("Transpose", mixed, perm=[0, 1, 3, 2, 4])
        mixed = g.op("Reshape", mixed, g.axes(0, -1, self.shape.width))
        return g.layer(g.op("Slice", mixed, g.axes(0), self.frames, g.axes(1)), f"{block}.out", weights)
