"""What of a graph follows from one of its values alone."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import helper


def following(blob: bytes, given: str, wanted: str) -> bytes:
    """A model from the value `given`, an output of the model in `blob`, to its output `wanted`.

    Raises ValueError where `wanted` needs anything else than `given` and constants.
    """
    model = onnx.load_model_from_string(blob)
    graph = model.graph
    outputs = {value.name: value for value in graph.output}
    known = {given, ""} | {tensor.name for tensor in graph.initializer}
    kept = []
    for node in graph.node:  # a graph is in order
        if given not in node.output and all(name in known for name in _needed(node)):
            kept.append(node)
            known.update(node.output)
    if wanted not in known:
        raise ValueError(f"{wanted} does not follow from {given} alone")
    part = helper.make_graph(kept, graph.name, [outputs[given]], [outputs[wanted]], list(graph.initializer))
    made = helper.make_model(part, opset_imports=list(model.opset_import), ir_version=model.ir_version)
    text: bytes = made.SerializeToString()
    return text


def _needed(node: onnx.NodeProto) -> Iterator[str]:
    """Names from outside that a node reads, those in the graphs inside it included."""
    yield from node.input
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            inside = {value.name for value in attribute.g.input} | {t.name for t in attribute.g.initializer}
            for inner in attribute.g.node:
                yield from (name for name in _needed(inner) if name not in inside)
                inside.update(inner.output)
