"""The `pairalign` tokenizer as one ONNX file: the encoder's graph, and the decoder with its loop after it.

What the decoder works out is in `model.pairalign.shape`. All windows of all clips are decoded side by side, greedily,
with a cache of keys and values; what does not change from step to step is worked out before the loop.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from model.graph import Array, GraphBuilder, write_model
from model.pairalign.part import Part, PartError
from model.pairalign.shape import waves
from model.tokenizer import DEFAULT_WEIGHTS

NEVER = -1e9  # added to, or put in the place of, the score of what must not be
PREFIX = "pairalign."  # of the names of the decoder's nodes and constants

Float32 = npt.NDArray[np.float32]


class _Builder(GraphBuilder):
    """Names start with `prefix`, so that no graph around has them. Constants lie in the outermost graph."""

    def __init__(self, prefix: str, constants: dict[str, onnx.TensorProto] | None = None) -> None:
        super().__init__()
        self.prefix = prefix
        if constants is not None:
            self.constants = constants

    def constant(self, name: str, value: Array) -> str:
        name = name if name.startswith(PREFIX) else PREFIX + name
        self.constants[name] = onnx.numpy_helper.from_array(np.array(value, order="C"), name)  # also without axes
        return name

    def op(self, kind: str, *inputs: str, out: str | None = None, **attributes: object) -> str:
        return super().op(kind, *inputs, out=out or f"{self.prefix}{kind.lower()}_{len(self.nodes)}", **attributes)

    def integer(self, value: int) -> str:
        """An int64 initialiser without axes."""
        return self.constant(f"int_{value}", np.array(value, np.int64))


class _Decoder:
    """The decoder's nodes: `prepare` before the loop, `step` in it, `stitch` after it."""

    def __init__(self, g: _Builder, part: Part, rate: int) -> None:
        self.g, self.shape, self.weights, self.rate = g, part.shape, part.weights, rate
        self.hop = part.shape.window_frames - part.shape.overlap_frames

    def ids(self, embeddings: str) -> str:
        """[batch, frames, dim] to the output `ids` int64 [batch, frames]."""
        g, s = self.g, self.shape
        batch = g.op("Shape", embeddings, start=0, end=1)
        frames = g.op("Shape", embeddings, start=1, end=2)
        count = g.op("Max", g.op("Div", g.op("Add", frames, g.axes(self.hop - 1 - s.overlap_frames)), g.axes(self.hop)),
                     g.axes(1))  # fmt: skip
        # Frames of each window, and which of them there are.
        number = g.op("Range", g.integer(0), g.op("Squeeze", count), g.integer(1))
        at = g.op("Unsqueeze", g.op("Mul", number, g.axes(self.hop)), g.axes(1))
        at = g.op("Add", at, g.constant("frame", np.arange(s.window_frames)))
        inside = g.op("Less", at, frames)
        last = g.op("Sub", frames, g.axes(1))
        heard = g.op("Gather", embeddings, g.op("Min", at, last), axis=1)
        heard = g.op("Reshape", heard, g.axes(-1, s.window_frames, s.dim))  # [windows of all clips, 75, dim]
        every = g.op("Concat", batch, count, g.axes(s.window_frames), axis=0)
        inside = g.op("Reshape", g.op("Expand", inside, every), g.axes(-1, s.window_frames))
        windows = self._decode(heard, inside)
        shape = g.op("Concat", batch, count, g.axes(s.window_frames), axis=0)
        return self._stitched(g.op("Reshape", windows, shape), batch, frames)

    def linear(self, g: _Builder, x: str, name: str, factor: float = 1.0) -> str:
        """A linear layer of the decoder, times `factor`."""
        weight, bias = self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")
        scale = np.float32(factor)
        return g.linear(x, name, weight * scale, None if bias is None else bias * scale)

    def _decode(self, heard: str, inside: str) -> str:
        """Framewise ids int64 [windows, 75] of windows by themselves."""
        g, s, w = self.g, self.shape, self.weights
        wave = g.constant("wave", waves(s.window_frames, s.width))
        memory = g.op("Add", g.norm(self.linear(g, heard, "condition"), "condition_norm", w), wave)
        zero, never = g.scalar("zero", 0.0), g.scalar("never", NEVER)
        hidden = g.op("Where", inside, zero, never)
        look = g.op("Unsqueeze", hidden, g.axes(1, 2))
        across = []
        for i in range(s.blocks):
            name = f"blocks.{i}.cross"
            key = g.op("Reshape", self.linear(g, memory, f"{name}.key"), self._heads(-1, s.window_frames))
            value = g.op("Reshape", self.linear(g, memory, f"{name}.value"), self._heads(-1, s.window_frames))
            across.append((g.op("Transpose", key, perm=[0, 2, 3, 1]), g.op("Transpose", value, perm=[0, 2, 1, 3])))
        points = g.op("Transpose", self.linear(g, memory, "point_key", s.width**-0.5), perm=[0, 2, 1])
        windows = g.op("Shape", heard, start=0, end=1)
        lengths = g.op("ReduceSum", g.op("Cast", inside, to=TensorProto.INT64), g.axes(1), keepdims=0)
        filled = self._filled
        bos = filled(g, windows, np.array([s.bos], np.int64))
        none = filled(g, windows, np.array([0], np.int64))
        going = filled(g, windows, np.array([True]))
        ids = filled(g, g.op("Concat", windows, g.axes(s.window_frames), axis=0), np.array([0], np.int64))
        keys = filled(
            g, g.op("Concat", windows, g.axes(s.heads, s.width // s.heads, 0), axis=0), np.zeros(1, np.float32)
        )
        values = filled(
            g, g.op("Concat", windows, g.axes(s.heads, 0, s.width // s.heads), axis=0), np.zeros(1, np.float32)
        )
        body = self._step(across, look, hidden, points, lengths)
        states = [bos, none, going, ids, *[keys, values] * s.blocks]
        outputs = [f"{PREFIX}after.{i}" for i in range(len(states))]
        go = g.constant("go", np.array(True))
        loop = helper.make_node(
            "Loop", [g.integer(s.max_tokens), go, *states], outputs, name=f"{PREFIX}loop", body=body
        )
        g.nodes.append(loop)
        return outputs[3]

    def _heads(self, batch: int, rows: int) -> str:
        return self.g.axes(batch, rows, self.shape.heads, self.shape.width // self.shape.heads)

    @staticmethod
    def _filled(g: _Builder, shape: str, value: Array) -> str:
        return g.op("ConstantOfShape", shape, value=onnx.numpy_helper.from_array(value))

    def _step(
        self, across: list[tuple[str, str]], look: str, hidden: str, points: str, lengths: str
    ) -> onnx.GraphProto:
        """One token of every window that is still going: the body of the loop."""
        s, w = self.shape, self.weights
        g = _Builder(f"{PREFIX}step.", self.g.constants)
        kinds = {"token": TensorProto.INT64, "start": TensorProto.INT64, "going": TensorProto.BOOL,
                 "ids": TensorProto.INT64}  # fmt: skip
        ranks = {"token": 1, "start": 1, "going": 1, "ids": 2}
        for i in range(s.blocks):
            for part in ("keys", "values"):
                kinds[f"{part}.{i}"], ranks[f"{part}.{i}"] = TensorProto.FLOAT, 4
        before = {name: f"{g.prefix}before.{name}" for name in kinds}
        token, start, going = before["token"], before["start"], before["going"]
        step = f"{g.prefix}number"

        table = g.constant("token.weight", w["token.weight"] + w["rate.weight"][self.rate])
        wave = g.constant("wave", waves(s.window_frames, s.width))
        x = g.op("Add", g.op("Gather", table, token), g.op("Gather", wave, start))
        x = g.op("Unsqueeze", x, g.axes(1))
        after: dict[str, str] = {}
        alone = g.axes(-1, s.heads, 1, s.width // s.heads)  # of one row heads need no transposing
        for i in range(s.blocks):
            name = f"blocks.{i}.self"
            y = g.norm(x, f"blocks.{i}.self_norm", w)
            query = g.op("Reshape", self.linear(g, y, f"{name}.query", (s.width // s.heads) ** -0.5), alone)
            key = g.op("Reshape", self.linear(g, y, f"{name}.key"), g.axes(-1, s.heads, s.width // s.heads, 1))
            value = g.op("Reshape", self.linear(g, y, f"{name}.value"), alone)
            after[f"keys.{i}"] = g.op("Concat", before[f"keys.{i}"], key, axis=3)
            after[f"values.{i}"] = g.op("Concat", before[f"values.{i}"], value, axis=2)
            share = g.op("Softmax", g.op("MatMul", query, after[f"keys.{i}"]), axis=-1)
            x = self._mixed(g, x, share, after[f"values.{i}"], name)
            name = f"blocks.{i}.cross"
            y = g.norm(x, f"blocks.{i}.cross_norm", w)
            query = g.op("Reshape", self.linear(g, y, f"{name}.query", (s.width // s.heads) ** -0.5), alone)
            share = g.op("Softmax", g.op("Add", g.op("MatMul", query, across[i][0]), look), axis=-1)
            x = self._mixed(g, x, share, across[i][1], name)
            y = self.linear(g, g.norm(x, f"blocks.{i}.wide_norm", w), f"blocks.{i}.expand")
            x = g.op("Add", x, self.linear(g, g.op("Gelu", y), f"blocks.{i}.contract"))
        y = g.norm(x, "norm", w)

        def row(name: str) -> str:
            return g.op("Squeeze", name, g.axes(1))

        here = g.op("Unsqueeze", token, g.axes(1))
        same = g.op("Equal", g.constant("numbers", np.arange(s.size + 1)), here)
        logits = g.op("Where", same, g.scalar("never", NEVER), row(self.linear(g, y, "head")))
        best = g.op("ArgMax", logits, axis=-1, keepdims=0)
        scores = g.op("Add", row(g.op("MatMul", self.linear(g, y, "point_query"), points)), hidden)
        frame = g.constant("frame", np.arange(s.window_frames))
        gone = g.op("LessOrEqual", frame, g.op("Unsqueeze", start, g.axes(1)))
        place = g.op("ArgMax", g.op("Where", gone, g.scalar("gone", 2 * NEVER), scores), axis=-1, keepdims=0)
        first = g.op("Equal", step, g.integer(0))
        more = g.op("Less", g.op("Add", start, g.axes(1)), lengths)  # frames after the last token's
        goes_on = g.op("And", g.op("Not", g.op("Equal", best, g.integer(s.bos))), more)
        on = g.op("And", going, g.op("Or", first, goes_on))
        moves = g.op("And", on, g.op("Not", first))
        after["going"] = on
        after["token"] = g.op("Where", on, best, token)
        after["start"] = g.op("Where", moves, place, start)
        from_here = g.op("Not", g.op("Less", frame, g.op("Unsqueeze", after["start"], g.axes(1))))
        written = g.op("And", g.op("Unsqueeze", on, g.axes(1)), from_here)
        after["ids"] = g.op("Where", written, g.op("Unsqueeze", after["token"], g.axes(1)), before["ids"])
        any_on = g.op("ReduceMax", g.op("Cast", on, to=TensorProto.INT32), keepdims=0)
        going_on = g.op("Cast", any_on, to=TensorProto.BOOL)

        def value_info(name: str, kind: int, rank: int) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, kind, [None] * rank)

        go = f"{g.prefix}go"
        inputs = [value_info(step, TensorProto.INT64, 0), value_info(go, TensorProto.BOOL, 0)]
        inputs += [value_info(before[name], kinds[name], ranks[name]) for name in kinds]
        outputs = [value_info(going_on, TensorProto.BOOL, 0)]
        outputs += [value_info(after[name], kinds[name], ranks[name]) for name in kinds]
        return helper.make_graph(g.nodes, "step", inputs, outputs)

    def _mixed(self, g: _Builder, x: str, share: str, values: str, name: str) -> str:
        mixed = g.op("Reshape", g.op("MatMul", share, values), g.axes(-1, 1, self.shape.width))
        return g.op("Add", x, self.linear(g, mixed, f"{name}.out"))

    def _stitched(self, windows: str, batch: str, frames: str) -> str:
        """`stitching.stitch` of [batch, windows, 75]: the output `ids`."""
        g, s = self.g, self.shape
        middle, overlap = s.overlap_frames // 2, s.overlap_frames
        head = g.op("Slice", windows, g.axes(0), g.axes(overlap), g.axes(2))
        tail = g.op("Slice", windows, g.axes(self.hop), g.axes(s.window_frames), g.axes(2))
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
        inner = g.op("Slice", windows, g.axes(overlap), g.axes(self.hop), g.axes(2))
        line = g.op("Reshape", g.op("Concat", start, inner, axis=2), g.op("Concat", batch, g.axes(-1), axis=0))
        end = g.op("Squeeze", g.op("Slice", tail, g.axes(-1), g.axes(2**31), g.axes(1)), g.axes(1))
        return g.op("Slice", g.op("Concat", line, end, axis=1), g.axes(0), frames, g.axes(1), out="ids")


def build(part: Part, out: Path, *, encoder: Path = DEFAULT_WEIGHTS, rate: int | None = None) -> None:
    """Write the tokenizer to `out`: `waveform` float32 [batch, samples], context `segment`, tokens `generated`.

    `rate` is another setting of the length knob than the part's own: 0 writes most tokens. Raises PartError where the
    part belongs to another encoder or has no such rate, OSError where a file cannot be read or written.
    """
    blob = encoder.read_bytes()
    if (found := hashlib.sha256(blob).hexdigest()) != part.encoder_sha256:
        raise PartError(
            f"the decoder belongs to the tokenizer {part.encoder_sha256[:12]}, and {encoder} is {found[:12]}"
        )
    rate = part.rate if rate is None else rate
    if not 0 <= rate < part.shape.rates:
        raise PartError(f"there is no rate {rate}: 0 to {part.shape.rates - 1}")
    model = onnx.load_model_from_string(blob)
    entries = {entry.key: entry.value for entry in model.metadata_props}
    nodes = [node for node in model.graph.node if "ids" not in node.output]
    g = _Builder(PREFIX)
    _Decoder(g, part, rate).ids("embeddings")
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *g.nodes])
    model.graph.initializer.extend(g.constants.values())
    del model.metadata_props[:]
    metadata = {
        **part.description.metadata(), "frame_seconds": entries["frame_seconds"], "context": "segment",
        "left_context_samples": "0", "right_context_samples": "0", "tokens": "generated", "rate": str(rate),
    }  # fmt: skip
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=False)
    write_model(model, out)
