"""Somebody else's encoder: an ONNX graph from a waveform to features, opened, tried, made part of a larger one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto

from model.audio import SAMPLE_RATE, Samples
from model.tokenizer import open_session
from model.trial import noise

PREFIX = "encoder/"  # of all its names, so that they are never ours
OLDEST_OPSET = 13  # from there on, axes are inputs
LONGEST_LEAST_S = 1.0  # an encoder that gives nothing for that much sound is none
TRIED_S = 10.0  # of noise, to see how many rows it gives
SPARE_ROWS = 5  # by which that may be off: convolutions without padding lose some at the end

Float32 = npt.NDArray[np.float32]


class WrapError(Exception):
    """An encoder, centroids or audio that no tokenizer can be made of: the message says what was found."""

    code = "wrap_failed"


class ForeignEncoder:
    """An encoder of one waveform input, [batch, samples] at 16 kHz, to features [batch, about samples / frame, dim].

    `input` and `output` are its names for them, `batch` the size of the first axis where that is fixed.
    `least_samples` is the shortest clip that it takes, in whole frames.
    """

    def __init__(self, path: Path, frame_samples: int, output: str | None = None) -> None:
        """Open and try it; `output` names the features, by default the first. Raises WrapError."""
        self.path = path
        self.frame_samples = frame_samples
        self._model = _read(path)
        wave, features = self._waveform(), self._features(output)
        self.batch: str | int = wave.type.tensor_type.shape.dim[0].dim_value or "batch"
        self.input, self.output = PREFIX + wave.name, PREFIX + features.name
        _prune(self._model.graph, features)
        _prefix(self._model.graph)
        self._session = self._open()
        self.least_samples = self._least()
        self.dim = self._dim()

    def features(self, samples: Samples) -> Float32:
        """One row a frame, float32 [len(samples) // frame samples, dim]: what is too many is cut, the last repeated."""
        frames = len(samples) // self.frame_samples
        rows = self._run(np.pad(samples, (0, max(0, self.least_samples - len(samples)))))
        return rows[np.minimum(np.arange(frames), len(rows) - 1)]

    def between(self, head: Sequence[onnx.NodeProto], tail: Sequence[onnx.NodeProto]) -> onnx.ModelProto:
        """Its nodes between others, which make `input` and take `output`: a model that has no interface yet."""
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        nodes = [*head, *self._model.graph.node, *tail]
        for field in (model.graph.node, model.graph.input, model.graph.output):
            del field[:]
        model.graph.node.extend(nodes)
        model.ClearField("doc_string")
        model.graph.ClearField("doc_string")
        return model

    def _waveform(self) -> onnx.ValueInfoProto:
        graph = self._model.graph
        constants = {tensor.name for tensor in graph.initializer}
        inputs: list[onnx.ValueInfoProto] = [value for value in graph.input if value.name not in constants]
        if len(inputs) != 1:
            raise WrapError(f"{self.path} has inputs {[value.name for value in inputs]}: one waveform is needed")
        tensor = inputs[0].type.tensor_type
        sides = [dim.dim_param or dim.dim_value or "?" for dim in tensor.shape.dim]
        if tensor.elem_type != TensorProto.FLOAT or len(sides) != 2:
            kind = TensorProto.DataType.Name(tensor.elem_type).lower()
            raise WrapError(f"{self.path} takes {kind} {sides}: float [batch, samples] is needed")
        if tensor.shape.dim[1].dim_value:
            raise WrapError(f"{self.path} takes {sides[1]} samples and no others: export it with a dynamic axis")
        if tensor.shape.dim[0].dim_value > 1:
            raise WrapError(f"{self.path} takes {sides[0]} clips at a time and no fewer: export it with a dynamic axis")
        return inputs[0]

    def _features(self, name: str | None) -> onnx.ValueInfoProto:
        outputs: dict[str, onnx.ValueInfoProto] = {value.name: value for value in self._model.graph.output}
        if name is None:
            return next(iter(outputs.values()))
        if name not in outputs:
            raise WrapError(f"{self.path} has no output {name!r}: it has {', '.join(outputs)}")
        return outputs[name]

    def _open(self) -> ort.InferenceSession:
        try:
            return open_session(self._model.SerializeToString())
        except Exception as error:  # ONNX Runtime raises many kinds, protobuf ValueError beyond 2 GB
            raise WrapError(f"{self.path} cannot be loaded: {_line(error)}") from error

    def _least(self) -> int:
        """The fewest samples, in whole frames, that it gives a row for."""
        message = ""
        for frames in range(1, round(LONGEST_LEAST_S * SAMPLE_RATE) // self.frame_samples + 2):
            try:
                if len(self._run(noise(frames * self.frame_samples / SAMPLE_RATE))):
                    return frames * self.frame_samples
            except WrapError:
                raise
            except Exception as error:  # ONNX Runtime raises many kinds
                message = _line(error)
        found = message or "there are no features"
        raise WrapError(f"{self.path} does not run on {LONGEST_LEAST_S:g} s of sound: {found}")

    def _dim(self) -> int:
        """Dimensions of its features, once their number has been found to go with the frames."""
        samples = noise(TRIED_S)
        try:
            rows, dim = map(int, self._run(samples).shape)
        except WrapError:
            raise
        except Exception as error:
            raise WrapError(f"{self.path} does not run on {TRIED_S:g} s of sound: {_line(error)}") from error
        frames = len(samples) // self.frame_samples
        if abs(rows - frames) > SPARE_ROWS:
            raise WrapError(
                f"{self.path} gives {rows} rows for {TRIED_S:g} s of sound, about {TRIED_S / rows:.4g} s a row: "
                f"frames of {self.frame_samples / SAMPLE_RATE:g} s would be {frames}"
            )
        return dim

    def _run(self, samples: Samples) -> Float32:
        quiet = ort.RunOptions()
        quiet.log_severity_level = 4  # what it says of clips that are too short is expected
        batch = np.ascontiguousarray(samples, np.float32)[None]
        found = np.asarray(self._session.run([self.output], {self.input: batch}, quiet)[0])
        if found.dtype != np.float32 or found.ndim != 3 or len(found) != 1:
            raise WrapError(
                f"{self.path} gives {found.dtype} {[*found.shape]} for one clip: float32 [1, rows, dim] is needed"
            )
        return np.asarray(found[0])


def _read(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(str(path))  # with the tensors of other files, where it has any
        opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
        if opset < OLDEST_OPSET:
            raise WrapError(f"{path} is of opset {opset}: {OLDEST_OPSET} or later is needed")
        onnx.checker.check_model(model)
    except OSError as error:
        raise WrapError(f"cannot read {path}: {error.strerror or error}") from error
    except WrapError:
        raise
    except Exception as error:  # the parser and the checker raise many kinds
        raise WrapError(f"{path} is not an ONNX file: {_line(error)}") from error
    return model


def _subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [graph for attribute in node.attribute for graph in (attribute.g, *attribute.graphs) if graph.node]


def _names(nodes: Any) -> set[str]:
    """All that the nodes take, those of their subgraphs included."""
    taken: set[str] = set()
    for node in nodes:
        taken.update(node.input)
        for graph in _subgraphs(node):
            taken |= _names(graph.node) | {value.name for value in graph.output}
    return taken


def _prune(graph: onnx.GraphProto, output: onnx.ValueInfoProto) -> None:
    """Leave out the other outputs and all that `output` does not need: an inner layer needs none above it."""
    needed, kept = {output.name}, []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed |= _names([node])
    for field, keep in (
        (graph.node, kept[::-1]),
        (graph.initializer, [tensor for tensor in graph.initializer if tensor.name in needed]),
        (graph.output, [output]),
    ):
        del field[:]
        field.extend(keep)
    del graph.value_info[:]  # advice that the runtime does not need
    del graph.quantization_annotation[:]


def _prefix(graph: onnx.GraphProto) -> None:
    """Give every name the prefix, in subgraphs as well, and drop the notes that exporters leave at the nodes."""
    for node in graph.node:
        node.name = node.name and PREFIX + node.name
        node.input[:] = [name and PREFIX + name for name in node.input]
        node.output[:] = [name and PREFIX + name for name in node.output]
        node.ClearField("doc_string")
        node.ClearField("metadata_props")  # these hold the exporter's source paths
        for inner in _subgraphs(node):
            _prefix(inner)
    sparse = chain.from_iterable((tensor.values, tensor.indices) for tensor in graph.sparse_initializer)
    for value in chain(graph.initializer, graph.input, graph.output, graph.value_info, sparse):
        value.name = value.name and PREFIX + value.name


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
