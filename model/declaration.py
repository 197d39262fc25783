"""What a tokenizer file says of itself, and whether that honours the contract; nothing is run to find out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnx.numpy_helper
from onnx import TensorProto

from model.audio import SAMPLE_RATE
from model.codebook import Codebook

LARGEST_CODEBOOK = 65_535  # a token is a uint16
UNIT_TOLERANCE = 1e-3  # by which the length of a unit vector may be off
PQ_SIZE = 256
TEXTS = ("name", "version", "licence", "trained_on")
SCORE_MAP = "score_map"  # the metadata entry
OUTPUTS = {"ids": (TensorProto.INT64, 2), "embeddings": (TensorProto.FLOAT, 3)}  # element type and rank

Float32 = npt.NDArray[np.float32]
Level = Literal["error", "warning", "ok"]
ScoreMap = tuple[float, float, float]
Context = Literal["bounded", "segment"]
Tokens = Literal["nearest", "generated"]


@dataclass(frozen=True)
class Finding:
    """What one rule of the contract has to say about a file; `message` reads on after the file's name."""

    level: Level
    rule: str
    message: str


@dataclass(frozen=True)
class TokenizerInfo:
    """What the file says of itself.

    `score_map`, which may be missing, makes probabilities of what a search finds: the factors of a match's distance
    from the query's background, in spreads, and of its mean cosine, and the bias, of a logistic function.
    `tokens` are the nearest centroids of any codebook, or generated: then they are the graph's own, and so is the
    codebook.
    """

    name: str
    version: str
    frame_seconds: float
    context: Context
    left_context_samples: int
    right_context_samples: int
    licence: str
    trained_on: str
    sha256: str
    score_map: ScoreMap | None = None
    tokens: Tokens = "nearest"


@dataclass(frozen=True, eq=False)
class Declaration:
    """A file's info and codebook, each None where it is not sound, and all that is amiss, worst first.

    Texts that are missing are empty in `info`: they are errors, but the rest can be judged without them.
    """

    info: TokenizerInfo | None
    codebook: Codebook | None
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that make it no tokenizer."""
        return tuple(finding for finding in self.findings if finding.level == "error")


def declaration(blob: bytes) -> Declaration:
    """Read the bytes of a file and judge all that can be judged without running it; never raises."""
    try:
        model = onnx.load_model_from_string(blob)
        onnx.checker.check_model(model)
    except Exception as error:  # the parser and the checker raise many kinds
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return Declaration(None, None, (Finding("error", "file", f"is not an ONNX file: {line}"),))
    findings: list[Finding] = []
    _judge_interface(model.graph, findings)
    codebook = _read_codebook(model.graph, findings)
    info = _read_info(model, hashlib.sha256(blob).hexdigest(), findings)
    findings.sort(key=lambda finding: finding.level)  # "error" before "warning"; otherwise in the order of the rules
    return Declaration(info, codebook, tuple(findings))


def _judge_interface(graph: onnx.GraphProto, findings: list[Finding]) -> None:
    def judge(value: onnx.ValueInfoProto, kind: int, rank: int, rule: str) -> None:
        tensor = value.type.tensor_type
        if tensor.elem_type != kind:
            found, wanted = (TensorProto.DataType.Name(k).lower() for k in (tensor.elem_type, kind))
            findings.append(Finding("error", rule, f"has {value.name} of type {found}: {wanted} is needed"))
        if tensor.HasField("shape") and len(tensor.shape.dim) != rank:
            found = len(tensor.shape.dim)
            findings.append(Finding("error", rule, f"has {value.name} of {found} axes: {rank} are needed"))

    constants = {tensor.name for tensor in graph.initializer}
    inputs = {value.name: value for value in graph.input if value.name not in constants}
    outputs = {value.name: value for value in graph.output}
    names = f"has inputs {[*inputs]} and outputs {[*outputs]}: waveform, ids and embeddings are needed"
    if "waveform" not in inputs:
        findings.append(Finding("error", "inputs", names))
    if not OUTPUTS.keys() <= outputs.keys():
        findings.append(Finding("error", "outputs", names))
    if "waveform" in inputs and len(inputs) > 1:
        findings.append(Finding("error", "inputs", f"has inputs {[*inputs]}: nothing but waveform is given"))
    if "waveform" in inputs:
        judge(inputs["waveform"], TensorProto.FLOAT, 2, "inputs")
    for name, (kind, rank) in OUTPUTS.items():
        if name in outputs:
            judge(outputs[name], kind, rank, "outputs")


def _read_codebook(graph: onnx.GraphProto, findings: list[Finding]) -> Codebook | None:
    """The codebook if it is sound; a product quantiser that is not is left out."""
    tensors = {tensor.name: tensor for tensor in graph.initializer if tensor.name in ("codebook", "pq")}

    def sound(name: str, rank: int) -> Float32 | None:
        if tensors[name].data_location == TensorProto.EXTERNAL:
            found = "kept in another file: one file is needed"
        elif tensors[name].data_type not in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE):
            found = f"of type {TensorProto.DataType.Name(tensors[name].data_type).lower()}: float is needed"
        elif len(tensors[name].dims) != rank:
            found = f"of shape {[*tensors[name].dims]}: {rank} axes are needed"
        else:
            array = np.asarray(onnx.numpy_helper.to_array(tensors[name]), np.float32)
            if np.isfinite(array).all():
                return array
            found = "with values that are not finite"
        findings.append(Finding("error", name, f"has a {name} {found}"))
        return None

    pq = sound("pq", 3) if "pq" in tensors else None
    if "codebook" not in tensors:
        findings.append(Finding("error", "codebook", "has no initialiser named codebook"))
        return None
    centroids = sound("codebook", 2)
    if centroids is None:
        return None
    size, dim = centroids.shape
    if not 2 <= size <= LARGEST_CODEBOOK or dim < 1:
        message = f"has a codebook of shape {[size, dim]}: [K, dim] with K from 2 to {LARGEST_CODEBOOK} is needed"
        findings.append(Finding("error", "codebook", message))
        return None
    off = float(np.abs(np.linalg.norm(centroids, axis=1) - 1.0).max())
    if off > UNIT_TOLERANCE:
        message = f"has a codebook whose rows are not of unit length (off by {off:.2g})"
        findings.append(Finding("warning", "codebook", message))
    if pq is not None and (pq.shape[1] != PQ_SIZE or pq.shape[0] * pq.shape[2] != dim):
        message = f"has a pq of shape {[*pq.shape]}: [M, {PQ_SIZE}, {dim} / M] is needed"
        findings.append(Finding("error", "pq", message))
        pq = None
    return Codebook(centroids, pq)


def _read_info(model: onnx.ModelProto, sha256: str, findings: list[Finding]) -> TokenizerInfo | None:
    """The info, unless an entry that matters to running the file is amiss."""
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    usable = True

    def wrong(message: str, rule: str = "metadata", *, vital: bool = True) -> None:
        nonlocal usable
        usable = usable and not vital
        findings.append(Finding("error", rule, message))

    def number(key: str, kind: type[int] | type[float]) -> float:
        try:
            return kind(metadata[key])
        except KeyError:
            wrong(f"lacks the metadata entry {key!r}")
        except ValueError as error:
            wrong(f"has a metadata entry that is no number: {key}: {error}")
        return 1.0

    for key in TEXTS:
        if not metadata.get(key, "").strip():
            what = "has an empty metadata entry" if key in metadata else "lacks the metadata entry"
            wrong(f"{what} {key!r}", vital=False)
    context = metadata.get("context")
    if context is None:
        wrong("lacks the metadata entry 'context'")
    elif context not in ("bounded", "segment"):
        wrong(f"declares context {context!r}: bounded or segment is needed")
    left, right = (int(number(f"{side}_context_samples", int)) for side in ("left", "right"))
    if left < 0 or right < 0:
        wrong(f"declares a context of {left} and {right} samples: none can be negative")
    elif context == "segment" and (left or right) and usable:
        message = f"declares {left} and {right} samples of context, which a segment tokenizer is not given"
        findings.append(Finding("warning", "metadata", message))
    frame_seconds = number("frame_seconds", float)
    frame = frame_seconds * SAMPLE_RATE
    if not (np.isfinite(frame) and frame > 0.5 and abs(frame - round(frame)) < 1e-6):
        message = f"declares frame_seconds {frame_seconds!r}, which is {frame:.9g} samples: a whole number is needed"
        wrong(message, "frame_seconds")
    tokens = metadata.get("tokens", "nearest")
    if tokens not in ("nearest", "generated"):
        wrong(f"declares tokens {tokens!r}: nearest or generated is needed")
    score_map = None
    try:
        score_map = read_score_map(metadata)
    except ValueError as error:
        wrong(str(error), vital=False)
    if not usable:
        return None
    name, version, licence, trained_on = (metadata.get(key, "") for key in TEXTS)
    return TokenizerInfo(
        name, version, frame_seconds, "bounded" if context == "bounded" else "segment", left, right,
        licence, trained_on, sha256, score_map, "generated" if tokens == "generated" else "nearest",
    )  # fmt: skip


def read_score_map(metadata: Mapping[str, str]) -> ScoreMap | None:
    """The score map of metadata, None where there is none. Raises ValueError where it is not three finite numbers."""
    if SCORE_MAP not in metadata:
        return None
    try:
        distance, similarity, bias = map(float, metadata[SCORE_MAP].split())
    except ValueError as error:
        raise ValueError(f"has a {SCORE_MAP} that is not three numbers: {metadata[SCORE_MAP][:80]!r}") from error
    if not np.isfinite((distance, similarity, bias)).all() or distance < 0 or similarity < 0:
        raise ValueError(f"has a {SCORE_MAP} by which better matches are less probable: {metadata[SCORE_MAP][:80]!r}")
    return distance, similarity, bias
