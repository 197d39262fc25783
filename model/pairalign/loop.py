"""The decoder's loop in ONNX: windows side by side, each with one sequence (greedy) or a small beam of them.

What it works out is in `model.pairalign.shape`. What does not change from step to step is worked out before the loop;
keys and values of what was written are kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from model.graph import Array, GraphBuilder
from model.pairalign.part import Part
from model.pairalign.shape import waves

CODEBOOK = "codebook"  # the initialiser by which every tokenizer file has its centroids
NEVER = -1e9  # added to, or put in the place of, the score of what must not be
PREFIX = "pairalign."  # of the names of the decoder's nodes and constants


class Builder(GraphBuilder):
    """Names start with `prefix`, so that no graph around has them. Constants lie in the outermost graph."""

    def __init__(self, prefix: str, constants: dict[str, onnx.TensorProto] | None = None) -> None:
        super().__init__()
        self.prefix = prefix
        if constants is not None:
            self.constants = constants

    def constant(self, name: str, value: Array) -> str:
        """An initialiser, by a name with the decoder's prefix."""
        name = name if name.startswith(PREFIX) else PREFIX + name
        self.constants[name] = onnx.numpy_helper.from_array(np.array(value, order="C"), name)  # also without axes
        return name

    def op(self, kind: str, *inputs: str, out: str | None = None, **attributes: object) -> str:
        """A node with one output, whose name is `out` or made up."""
        return super().op(kind, *inputs, out=out or f"{self.prefix}{kind.lower()}_{len(self.nodes)}", **attributes)

    def integer(self, value: int) -> str:
        """An int64 initialiser without axes."""
        return self.constant(f"int_{value}", np.array(value, np.int64))

    def filled(self, shape: str, value: Array) -> str:
        """A tensor of that shape which is `value` [1] everywhere."""
        return self.op("ConstantOfShape", shape, value=onnx.numpy_helper.from_array(value))


@dataclass(frozen=True)
class _Memory:
    """What every step looks at, by name: of the blocks keys [n, heads, d, 75] and values [n, heads, 75, d]; `heard`
    [n, 75, dim], keys of copy and pointer [n, width, 75], centroids times the copy's scale [dim, K + 1]; `hidden`
    [n, 1, 75] is NEVER where no frame is, `lengths` [n, 1]."""  # fmt: skip

    across: list[tuple[str, str]]
    heard: str
    copies: str
    points: str
    centroids: str
    hidden: str
    lengths: str


class Loop:
    """The nodes of the decoder, with `beam` sequences a window (Sutskever et al. 2014); one of them is greedy.

    Of several the one with the highest mean log probability of its tokens and EOS is chosen; where no frame is left
    the end is certain, and is not counted.
    """

    def __init__(self, g: Builder, part: Part, rate: float, beam: int) -> None:
        self.g, self.shape, self.weights, self.beam = g, part.shape, part.weights, beam
        self.rate_row = part.rate_row(rate)

    def ids(self, heard: str, inside: str) -> str:
        """Framewise ids int64 [n, 75] of windows `heard` float32 [n, 75, dim], bool `inside` [n, 75]."""
        g, s, beam = self.g, self.shape, self.beam
        memory = self._memory(heard, inside)
        windows = g.op("Shape", heard, start=0, end=1)
        each = g.op("Concat", windows, g.axes(beam), axis=0)
        rows = g.op("Mul", windows, g.axes(beam))
        depth = s.width // s.heads
        keys = g.filled(g.op("Concat", rows, g.axes(s.heads, depth, 0), axis=0), np.zeros(1, np.float32))
        values = g.filled(g.op("Concat", rows, g.axes(s.heads, 0, depth), axis=0), np.zeros(1, np.float32))
        # At first only the first sequence of a window counts: the others are the same.
        handicap = g.constant("handicap", np.where(np.arange(beam) == 0, 0.0, NEVER).astype(np.float32))
        states = {
            "token": g.filled(each, np.array([s.bos])), "start": g.filled(each, np.array([0])),
            "going": g.filled(each, np.array([True])), "score": g.op("Expand", handicap, each),
            "count": g.filled(each, np.zeros(1, np.float32)),
            "ids": g.filled(g.op("Concat", each, g.axes(s.window_frames), axis=0), np.array([0])),
        }  # fmt: skip
        for i in range(s.blocks):
            states |= {f"keys.{i}": keys, f"values.{i}": values}
        body = self._step(memory, list(states))
        outputs = {name: f"{PREFIX}after.{name}" for name in states}
        inputs = [g.integer(s.max_tokens), g.constant("go", np.array(True)), *states.values()]
        g.nodes.append(helper.make_node("Loop", inputs, list(outputs.values()), name=f"{PREFIX}loop", body=body))
        if beam == 1:
            return g.op("Squeeze", outputs["ids"], g.axes(1))
        best = g.op("ArgMax", g.op("Div", outputs["score"], outputs["count"]), axis=1, keepdims=1)
        return g.op("GatherND", outputs["ids"], best, batch_dims=1)

    def linear(self, g: Builder, x: str, name: str, factor: float = 1.0) -> str:
        """A linear layer of the decoder, times `factor`."""
        weight, bias = self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")
        scale = np.float32(factor)
        return g.linear(x, name, weight * scale, None if bias is None else bias * scale)

    def _memory(self, heard: str, inside: str) -> _Memory:
        g, s, w = self.g, self.shape, self.weights
        wave = g.constant("wave", waves(s.window_frames, s.width))
        rows = g.op("Add", g.norm(self.linear(g, heard, "condition"), "condition_norm", w), wave)
        hidden = g.op("Where", inside, g.scalar("zero", 0.0), g.scalar("never", NEVER))
        heads = g.axes(-1, s.window_frames, s.heads, s.width // s.heads)
        across = []
        for i in range(s.blocks):
            key, value = (
                g.op("Reshape", self.linear(g, rows, f"blocks.{i}.cross.{part}"), heads) for part in ("key", "value")
            )
            across.append((g.op("Transpose", key, perm=[0, 2, 3, 1]), g.op("Transpose", value, perm=[0, 2, 1, 3])))
        copies, points = (
            g.op("Transpose", self.linear(g, rows, f"{kind}_key", s.width**-0.5), perm=[0, 2, 1])
            for kind in ("copy", "point")
        )
        ends = g.constant("no_centroid", np.zeros((s.dim, 1), np.float32))  # EOS is not copied
        centroids = g.op("Mul", g.op("Transpose", CODEBOOK, perm=[1, 0]), g.constant("copy_scale", w["copy_scale"]))
        centroids = g.op("Concat", centroids, ends, axis=1)
        lengths = g.op("ReduceSum", g.op("Cast", inside, to=TensorProto.INT64), g.axes(1), keepdims=1)
        return _Memory(across, heard, copies, points, centroids, g.op("Unsqueeze", hidden, g.axes(1)), lengths)

    def _step(self, memory: _Memory, states: list[str]) -> onnx.GraphProto:
        """One token of every sequence that is still going: the body of the loop."""
        g = Builder(f"{PREFIX}step.", self.g.constants)
        before = {name: f"{g.prefix}before.{name}" for name in states}
        step, go = f"{g.prefix}number", f"{g.prefix}go"
        y, caches = self._entry(g, memory, before)
        logits, place = self._scores(g, memory, y, before)
        first = g.op("Equal", step, g.integer(0))
        more = g.op("Less", g.op("Add", before["start"], g.axes(1)), memory.lengths)  # frames after the last token's
        free = g.op("And", before["going"], g.op("Or", first, more))
        after = self._chosen(g, before | caches, logits, place, free, first)
        any_on = g.op("ReduceMax", g.op("Cast", after["going"], to=TensorProto.INT32), keepdims=0)
        going_on = g.op("Cast", any_on, to=TensorProto.BOOL)

        def value_info(name: str, key: str) -> onnx.ValueInfoProto:
            kind = {"going": TensorProto.BOOL, "token": TensorProto.INT64, "start": TensorProto.INT64,
                    "ids": TensorProto.INT64}.get(key, TensorProto.FLOAT)  # fmt: skip
            rank = {"ids": 3}.get(key, 4 if "." in key else 2)
            return helper.make_tensor_value_info(name, kind, [None] * rank)

        inputs = [helper.make_tensor_value_info(step, TensorProto.INT64, []),
                  helper.make_tensor_value_info(go, TensorProto.BOOL, [])]  # fmt: skip
        inputs += [value_info(before[key], key) for key in states]
        outputs = [helper.make_tensor_value_info(going_on, TensorProto.BOOL, [])]
        outputs += [value_info(after[key], key) for key in states]
        return helper.make_graph(g.nodes, "step", inputs, outputs)

    def _entry(self, g: Builder, memory: _Memory, before: dict[str, str]) -> tuple[str, dict[str, str]]:
        """The last entries through all blocks: y [n, beam, width], and the caches with them."""
        s, w = self.shape, self.weights
        depth = s.width // s.heads
        table = g.constant("token.weight", w["token.weight"] + self.rate_row)
        wave = g.constant("wave", waves(s.window_frames, s.width))
        x = g.op("Add", g.op("Gather", table, before["token"]), g.op("Gather", wave, before["start"]))
        caches: dict[str, str] = {}
        alone = g.axes(-1, s.heads, 1, depth)  # of one row heads need no transposing
        for i in range(s.blocks):
            name = f"blocks.{i}.self"
            y = g.norm(x, f"blocks.{i}.self_norm", w)
            query = g.op("Reshape", self.linear(g, y, f"{name}.query", depth**-0.5), alone)
            key = g.op("Reshape", self.linear(g, y, f"{name}.key"), g.axes(-1, s.heads, depth, 1))
            value = g.op("Reshape", self.linear(g, y, f"{name}.value"), alone)
            keys = caches[f"keys.{i}"] = g.op("Concat", before[f"keys.{i}"], key, axis=3)
            values = caches[f"values.{i}"] = g.op("Concat", before[f"values.{i}"], value, axis=2)
            mixed = g.op("MatMul", g.op("Softmax", g.op("MatMul", query, keys), axis=-1), values)
            x = self._added(g, x, mixed, f"{name}.out")
            name = f"blocks.{i}.cross"
            y = g.norm(x, f"blocks.{i}.cross_norm", w)
            query = g.op("Reshape", self.linear(g, y, f"{name}.query", depth**-0.5),
                         g.axes(-1, self.beam, s.heads, depth))  # fmt: skip
            sight = g.op("MatMul", g.op("Transpose", query, perm=[0, 2, 1, 3]), memory.across[i][0])
            share = g.op("Softmax", g.op("Add", sight, g.op("Unsqueeze", memory.hidden, g.axes(1))), axis=-1)
            mixed = g.op("Transpose", g.op("MatMul", share, memory.across[i][1]), perm=[0, 2, 1, 3])
            x = self._added(g, x, mixed, f"{name}.out")
            y = self.linear(g, g.norm(x, f"blocks.{i}.wide_norm", w), f"blocks.{i}.expand")
            x = g.op("Add", x, self.linear(g, g.op("Gelu", y), f"blocks.{i}.contract"))
        return g.norm(x, "norm", w), caches

    def _added(self, g: Builder, x: str, mixed: str, name: str) -> str:
        rows = g.op("Reshape", mixed, g.axes(-1, self.beam, self.shape.width))
        return g.op("Add", x, self.linear(g, rows, name))

    def _scores(self, g: Builder, memory: _Memory, y: str, before: dict[str, str]) -> tuple[str, str]:
        """Logits [n, beam, K + 1] of the next token, and the frame [n, beam] at which it would begin."""
        s = self.shape
        sight = g.op("Add", g.op("MatMul", self.linear(g, y, "copy_query"), memory.copies), memory.hidden)
        seen = g.op("MatMul", g.op("Softmax", sight, axis=-1), memory.heard)
        logits = g.op("Add", self.linear(g, y, "head"), g.op("MatMul", seen, memory.centroids))
        here = g.op("Unsqueeze", before["token"], g.axes(2))
        same = g.op("Equal", g.constant("numbers", np.arange(s.size + 1)), here)  # at first BOS, whose number is EOS
        logits = g.op("Where", same, g.scalar("never", NEVER), logits)
        scores = g.op("Add", g.op("MatMul", self.linear(g, y, "point_query"), memory.points), memory.hidden)
        gone = g.op("LessOrEqual", self._frames(g), g.op("Unsqueeze", before["start"], g.axes(2)))
        place = g.op("ArgMax", g.op("Where", gone, g.scalar("gone", 2 * NEVER), scores), axis=-1, keepdims=0)
        return logits, place

    def _frames(self, g: Builder) -> str:
        return g.constant("frame", np.arange(self.shape.window_frames))

    def _chosen(
        self, g: Builder, states: dict[str, str], logits: str, place: str, free: str, first: str
    ) -> dict[str, str]:
        """The states after the step: of all ways to go on with a window's sequences the likeliest."""
        s, beam = self.shape, self.beam
        if beam == 1:
            new, kept = g.op("ArgMax", logits, axis=-1, keepdims=0), states
        else:
            stay = g.constant("stay", np.where(np.arange(s.size + 1) == s.bos, 0.0, NEVER).astype(np.float32))
            each = g.op("Where", g.op("Unsqueeze", free, g.axes(2)), g.op("LogSoftmax", logits, axis=-1), stay)
            total = g.op("Add", each, g.op("Unsqueeze", states["score"], g.axes(2)))
            score = f"{g.prefix}score"
            flat = g.op("Reshape", total, g.axes(-1, beam * (s.size + 1)))
            g.nodes.append(helper.make_node("TopK", [flat, g.axes(beam)], [score, f"{g.prefix}best"], axis=1))
            parent = g.op("Div", f"{g.prefix}best", g.integer(s.size + 1))
            new = g.op("Mod", f"{g.prefix}best", g.integer(s.size + 1))
            windows = g.op("Squeeze", g.op("Shape", parent, start=0, end=1))
            number = g.op("Mul", g.op("Range", g.integer(0), windows, g.integer(1)), g.integer(beam))
            row = g.op("Reshape", g.op("Add", parent, g.op("Unsqueeze", number, g.axes(1))), g.axes(-1))
            pair = g.op("Unsqueeze", parent, g.axes(2))

            def of_parent(name: str) -> str:
                return g.op("GatherND", name, pair, batch_dims=1)

            counted = g.op("Add", states["count"], g.op("Cast", free, to=TensorProto.FLOAT))
            kept = {key: g.op("Gather", name, row) if "." in key else of_parent(name) for key, name in states.items()}
            kept |= {"score": score, "count": of_parent(counted)}
            free, place = of_parent(free), of_parent(place)
        on = g.op("And", free, g.op("Not", g.op("Equal", new, g.integer(s.bos))))
        after = {key: name for key, name in kept.items() if "." in key}
        after["token"] = g.op("Where", on, new, kept["token"])
        after["start"] = g.op("Where", g.op("And", on, g.op("Not", first)), place, kept["start"])
        earlier = g.op("Less", self._frames(g), g.op("Unsqueeze", after["start"], g.axes(2)))
        written = g.op("And", g.op("Unsqueeze", on, g.axes(2)), g.op("Not", earlier))
        after["ids"] = g.op("Where", written, g.op("Unsqueeze", after["token"], g.axes(2)), kept["ids"])
        # An output of the body cannot be one of its inputs.
        return after | {"going": on, "score": g.op("Identity", kept["score"]), "count": g.op("Identity", kept["count"])}
