"""The contract checker, and a tokenizer brought by the user: made here with nothing but onnx.helper."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from model.contract import check
from model.tokenizer import LONGEST_S, Tokenizer, TokenizerError
from model.tokens import TokenString
from model.trial import noise

FRAME, REACH, BANDS, DIM, SIZE = 640, 320, 12, 8, 16
METADATA = {
    "name": "tiny", "version": "1", "frame_seconds": "0.04", "context": "bounded", "left_context_samples": "320",
    "right_context_samples": "320", "licence": "CC0-1.0", "trained_on": "nothing",
}  # fmt: skip


def tiny(**changes: Any) -> onnx.ModelProto:
    """A filter bank, a logarithm and a projection, twelve bands to eight dimensions; `changes` break it.

    A frame sees 320 samples to each side. Changed may be: pads, floor, normalise, nearest (ArgMax), last (nodes that
    make `embeddings` of `unit`), batch (the size of that axis), arrays (initialisers), metadata.
    """
    rng = np.random.default_rng(0)
    codebook = rng.standard_normal((SIZE, DIM)).astype(np.float32)
    codebook /= np.linalg.norm(codebook, axis=1, keepdims=True)
    time = np.arange(FRAME + 2 * REACH)
    tones = np.cos(np.outer(np.arange(200, 3_800, 300), time * 2 * np.pi / 16_000)) * np.hanning(len(time))
    arrays: dict[str, Any] = {
        "filters": tones[:, None].astype(np.float32) / 100,
        "projection": rng.standard_normal((BANDS, DIM)).astype(np.float32),
        "floor": np.float32(changes.get("floor", 1e-3)),
        "codebook": codebook,
        "one": np.array([1], np.int64),
        "last_axis": np.array([-1], np.int64),
        "pq": rng.standard_normal((2, 256, DIM // 2)).astype(np.float32) / 4,
        "sixteen": np.int64(SIZE),
        **changes.get("arrays", {}),
    }
    pads = changes.get("pads", [REACH, REACH])
    nodes = [
        helper.make_node("Unsqueeze", ["waveform", "one"], ["channel"]),
        helper.make_node("Conv", ["channel", "filters"], ["bands"], strides=[FRAME], pads=pads),
        helper.make_node("Abs", ["bands"], ["magnitude"]),
        helper.make_node("Add", ["magnitude", "floor"], ["floored"]),
        helper.make_node("Log", ["floored"], ["log"]),
        helper.make_node("Transpose", ["log"], ["rows"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["rows", "projection"], ["raw"]),
        helper.make_node("ReduceL2", ["raw", "last_axis"], ["length"], keepdims=1),
        helper.make_node("Div", ["raw", "length"], ["unit"]),
        *changes.get("last", [helper.make_node("Identity", ["unit"], ["embeddings"])]),
        helper.make_node("Transpose", [changes.get("centroids", "codebook")], ["transposed"], perm=[1, 0]),
        helper.make_node("MatMul", ["embeddings", "transposed"], ["similarity"]),
        *changes.get("nearest", [helper.make_node("ArgMax", ["similarity"], ["ids"], axis=-1, keepdims=0)]),
    ]
    batch = changes.get("batch", "batch")
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("waveform", TensorProto.FLOAT, [batch, "samples"])],
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, [batch, "frames"]),
            helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, [batch, "frames", DIM]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    metadata = METADATA | changes.get("metadata", {})
    helper.set_model_props(model, {key: value for key, value in metadata.items() if value is not None})
    return model


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(model, str(folder / "tiny.onnx"))
    return folder / "tiny.onnx"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return saved(tiny(), tmp_path)


def test_a_tokenizer_brought_by_the_user_passes_every_rule(path: Path) -> None:
    report = check(path)
    assert report.passed
    assert {finding.rule for finding in report.findings if finding.level == "ok"} == {
        "file", "inputs", "outputs", "codebook", "pq", "metadata", "frame_seconds", "run", "frames", "dimensions",
        "finite", "unit_norm", "ids", "determinism", "batch", "chunks", "speed",
    }  # fmt: skip
    assert {finding.level for finding in report.findings} == {"ok"}
    assert json.loads(json.dumps(report.as_json()))["passed"] is True


def test_the_shipped_tokenizer_passes(tokenizer_path: Path) -> None:
    assert [finding for finding in check(tokenizer_path).findings if finding.level != "ok"] == []


def node(kind: str, *names: str, **attributes: Any) -> onnx.NodeProto:
    """Its output is the last name."""
    return helper.make_node(kind, list(names[:-1]), [names[-1]], **attributes)


def metadata(**entries: str | None) -> Callable[[], onnx.ModelProto]:
    return lambda: tiny(metadata=entries)


def array(name: str, value: Any) -> Callable[[], onnx.ModelProto]:
    return lambda: tiny(arrays={name: value})


def beside(codebook: Any, **arrays: Any) -> Callable[[], onnx.ModelProto]:
    """The graph uses other centroids than the initialiser `codebook`."""
    return lambda: tiny(arrays={"codebook": codebook, "other": CENTROIDS, **arrays}, centroids="other")


def embeddings(*last: onnx.NodeProto, **arrays: Any) -> Callable[[], onnx.ModelProto]:
    return lambda: tiny(last=[*last], arrays=arrays)


def ids(*nearest: onnx.NodeProto) -> Callable[[], onnx.ModelProto]:
    return lambda: tiny(nearest=[*nearest])


def edited(edit: Callable[[onnx.GraphProto], object]) -> Callable[[], onnx.ModelProto]:
    def make() -> onnx.ModelProto:
        model = tiny()
        edit(model.graph)
        return model

    return make


def rename_input(graph: onnx.GraphProto) -> None:
    graph.input[0].name = graph.node[0].input[0] = "sound"


def another_input(graph: onnx.GraphProto) -> None:
    graph.input.append(helper.make_tensor_value_info("rate", TensorProto.INT64, [1]))


def rename_codebook(graph: onnx.GraphProto) -> None:
    next(tensor for tensor in graph.initializer if tensor.name == "codebook").name = "centroids"
    next(n for n in graph.node if "codebook" in n.input).input[0] = "centroids"


def short_ids(graph: onnx.GraphProto) -> None:
    graph.node[-1].output[0] = "long"
    graph.node.append(node("Cast", "long", "ids", to=TensorProto.INT32))
    graph.output[0].type.tensor_type.elem_type = TensorProto.INT32


def flat_embeddings(graph: onnx.GraphProto) -> None:
    graph.initializer.append(numpy_helper.from_array(np.array([-1, DIM]), "flat"))
    graph.node.append(node("Reshape", "unit", "flat", "embeddings"))
    graph.node[9].output[0] = "same"
    graph.node[11].input[0] = "same"
    del graph.output[1].type.tensor_type.shape.dim[0]


def unknown_operator(graph: onnx.GraphProto) -> None:
    graph.node[9].op_type = "Frobnicate"


def foreign_operator() -> onnx.ModelProto:
    model = tiny(last=[helper.make_node("Frobnicate", ["unit"], ["embeddings"], domain="example.org")])
    model.opset_import.append(helper.make_opsetid("example.org", 1))
    return model


CENTROIDS = np.eye(SIZE, DIM, dtype=np.float32) + np.eye(SIZE, DIM, -DIM, dtype=np.float32)
LONG = CENTROIDS.astype(np.int64)
NARROW = {"codebook": np.eye(SIZE, 6, dtype=np.float32), "pq": np.ones((2, 256, 3), np.float32)}
NORMALISED = (
    node("ReduceL2", "sum", "last_axis", "norm", keepdims=1),
    node("Div", "sum", "norm", "embeddings"),
)
MIXED = (node("ReduceMean", "unit", "zero", "mean", keepdims=1), node("Add", "unit", "mean", "sum"), *NORMALISED)
DICE = (node("RandomNormalLike", "unit", "dice", scale=1.0), node("Add", "unit", "dice", "sum"), *NORMALISED)
FARTHEST = (node("ArgMin", "similarity", "ids", axis=-1, keepdims=0),)
BEYOND = (node("ArgMax", "similarity", "i", axis=-1, keepdims=0), node("Add", "i", "sixteen", "ids"))

# What is broken: how, the rules that must be named and no others, and words of the message.
ERRORS: dict[str, tuple[Callable[[], onnx.ModelProto], set[str], str]] = {
    "an operator nobody knows": (edited(unknown_operator), {"file"}, "is not an ONNX file"),
    "an operator that only others have": (foreign_operator, {"run"}, "cannot be loaded"),
    "another input": (edited(rename_input), {"inputs"}, r"inputs \['sound'\]"),
    "two inputs": (edited(another_input), {"inputs"}, "nothing but waveform is given"),
    "no ids": (edited(lambda graph: graph.output.pop(0)), {"outputs"}, r"outputs \['embeddings'\]"),
    "ids of 32 bits": (edited(short_ids), {"outputs"}, "ids of type int32: int64"),
    "no batch": (edited(flat_embeddings), {"outputs", "frames", "batch", "chunks"}, "embeddings of 2 axes: 3"),
    "no codebook": (edited(rename_codebook), {"codebook"}, "no initialiser named codebook"),
    "one centroid": (array("codebook", CENTROIDS[:1]), {"codebook"}, r"shape \[1, 8\]"),
    "a centroid of nan": (array("codebook", CENTROIDS * np.float32("nan")), {"codebook"}, "not finite"),
    "centroids of integers": (beside(LONG), {"codebook"}, "of type int64"),
    "a codebook of three axes": (beside(CENTROIDS[None]), {"codebook"}, r"shape \[1, 16, 8\]"),
    "a narrow codebook": (beside(**NARROW), {"dimensions"}, "6 dimensions and embeddings of 8"),
    "a quantiser of three parts": (array("pq", np.ones((3, 256, 4), np.float32)), {"pq"}, r"\[M, 256, 8 / M\]"),
    "a quantiser of 16 codes": (array("pq", np.ones((2, 16, 4), np.float32)), {"pq"}, r"shape \[2, 16, 4\]"),
    "a quantiser of nan": (array("pq", np.full((2, 256, 4), np.nan, np.float32)), {"pq"}, "not finite"),
    "no licence": (metadata(licence=None), {"metadata"}, "lacks the metadata entry 'licence'"),
    "an empty version": (metadata(version=" "), {"metadata"}, "empty metadata entry 'version'"),
    "no context": (metadata(context=None), {"metadata"}, "lacks the metadata entry 'context'"),
    "an unknown context": (metadata(context="boundless"), {"metadata"}, "declares context 'boundless'"),
    "a context below zero": (metadata(left_context_samples="-1"), {"metadata"}, "none can be negative"),
    "a context of words": (metadata(right_context_samples="many"), {"metadata"}, "no number: right_context_samples"),
    "a score map of two numbers": (metadata(score_map="1 2"), {"metadata"}, "score_map that is not three numbers"),
    "a score map of words": (metadata(score_map="a b c"), {"metadata"}, "score_map that is not three numbers"),
    "a score map of nan": (metadata(score_map="nan 1 1"), {"metadata"}, "better matches are less probable"),
    "a score map that falls": (metadata(score_map="1 -2 1"), {"metadata"}, "better matches are less probable"),
    "frames of no length": (metadata(frame_seconds="0"), {"frame_seconds"}, "0 samples"),
    "frames of half a sample": (metadata(frame_seconds="0.04003125"), {"frame_seconds"}, "640.5 samples"),
    "frames of nan": (metadata(frame_seconds="nan"), {"frame_seconds"}, "nan samples"),
    "frames of another length": (metadata(frame_seconds="0.02"), {"frames", "run", "chunks"}, "is needed"),
    "a frame too few": (lambda: tiny(pads=[0, REACH]), {"frames", "run", "chunks"}, "is needed"),
    "logarithms of nothing": (lambda: tiny(floor=0.0), {"finite", "unit_norm"}, "not finite for 3.1 s of silence"),
    "long embeddings": (embeddings(node("Add", "unit", "unit", "embeddings")), {"unit_norm"}, "off by 1"),
    "the farthest centroid": (ids(*FARTHEST), {"ids"}, "not the nearest centroid"),
    "ids beyond the codebook": (ids(*BEYOND), {"ids"}, "0 to 15 is needed"),
    "a batch that mixes": (embeddings(*MIXED, zero=np.array([0])), {"batch"}, "in a batch than alone"),
    "dice": (embeddings(*DICE), {"determinism", "batch", "chunks"}, "another answer the second time"),
    "no context declared": (
        metadata(left_context_samples="0", right_context_samples="0"), {"chunks"}, "needs more context"
    ),
    "too little on the right": (metadata(right_context_samples="80"), {"chunks"}, "needs more context"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_each_broken_rule_is_named(tmp_path: Path, name: str) -> None:
    make, rules, says = ERRORS[name]
    report = check(saved(make(), tmp_path))
    errors = [finding for finding in report.findings if finding.level == "error"]
    assert {finding.rule for finding in errors} == rules
    assert any(re.search(says, finding.message) for finding in errors), errors
    assert not report.passed


STATIC = ("file", "inputs", "outputs", "codebook", "pq", "metadata", "frame_seconds")


@pytest.mark.parametrize("name", [name for name, (_, rules, _) in ERRORS.items() if rules & {*STATIC, "run"} == rules])
def test_the_runtime_refuses_by_the_same_rules(tmp_path: Path, name: str) -> None:
    make, _, _ = ERRORS[name]
    path = saved(make(), tmp_path)
    first = next(finding for finding in check(path).findings if finding.level == "error")
    with pytest.raises(TokenizerError) as raised:
        Tokenizer(path)
    assert str(raised.value).startswith(f"{path} ")
    if first.rule != "run":
        assert str(raised.value) == f"{path} {first.message}"


def test_what_is_merely_unwise_is_a_warning(tmp_path: Path) -> None:
    for model, rule in (
        (tiny(arrays={"codebook": CENTROIDS * 2}), "codebook"),
        (tiny(batch=1), "batch"),
        (tiny(metadata={"context": "segment"}), "metadata"),
        (tiny(metadata={"left_context_samples": str(16_000 * 100)}), "chunks"),
    ):
        report = check(saved(model, tmp_path))
        assert report.passed
        assert [finding.rule for finding in report.findings if finding.level == "warning"] == [rule]
        assert rule not in {finding.rule for finding in report.findings if finding.level == "ok"}


def test_all_that_is_wrong_is_found_in_one_go(tmp_path: Path) -> None:
    model = tiny(
        metadata={"licence": None, "left_context_samples": "0"},
        arrays={"pq": np.ones((3, 256, 4), np.float32), "codebook": CENTROIDS * 2},
        last=[node("Add", "unit", "unit", "embeddings")],
    )
    found = {(finding.level, finding.rule) for finding in check(saved(model, tmp_path)).findings}
    assert {(level, rule) for level, rule in found if level != "ok"} == {
        ("error", "metadata"), ("error", "pq"), ("error", "unit_norm"), ("error", "chunks"), ("warning", "codebook"),
    }  # fmt: skip


def test_rules_without_a_codebook_or_metadata_are_said_to_be_open(tmp_path: Path) -> None:
    model = tiny(metadata={"context": None})
    rename_codebook(model.graph)
    report = check(saved(model, tmp_path))
    levels = {finding.rule: finding.level for finding in report.findings}
    assert [rule for rule, level in levels.items() if level == "error"] == ["metadata", "codebook"][::-1]
    assert {rule for rule, level in levels.items() if level == "warning"} == {"frames", "dimensions", "ids", "chunks"}
    assert levels["determinism"] == levels["unit_norm"] == "ok"


def test_files_that_are_none_are_findings_too(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("hello")
    for path, says in ((tmp_path / "none.onnx", "cannot be read"), (tmp_path / "text.onnx", "is not an ONNX file")):
        (finding,) = check(path).findings
        assert (finding.level, finding.rule) == ("error", "file")
        assert finding.message.startswith(says)


def test_tensors_in_a_second_file_are_refused(tmp_path: Path) -> None:
    onnx.save(tiny(), str(tmp_path / "two.onnx"), save_as_external_data=True, location="weights", size_threshold=0)
    report = check(tmp_path / "two.onnx")
    assert {finding.rule for finding in report.findings if finding.level == "error"} >= {"file"}


def test_it_works_end_to_end(path: Path) -> None:
    tokenizer = Tokenizer(path, threads=1)
    samples = noise(3.1)
    string = tokenizer.tokenize(samples, offset=1.5)
    assert string.durations.sum() == len(samples) // FRAME
    assert string.pq is not None
    assert string.offset == 1.5
    assert TokenString.from_bytes(string.to_bytes()).ids.tolist() == string.ids.tolist()
    assert tokenizer.info.licence == "CC0-1.0"
    assert (tokenizer.frame_ids(samples) == tokenizer.codebook.assign(tokenizer.embed(samples))).all()


@pytest.mark.parametrize("seconds", [1.0, LONGEST_S, LONGEST_S + 0.04, 47.3, 700.0])
def test_a_segment_tokenizer_gets_long_clips_in_windows(
    tmp_path: Path, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = Tokenizer(saved(tiny(metadata={"context": "segment"}), tmp_path), threads=1)
    samples = noise(seconds)
    once = tokenizer._run(samples)
    lengths: list[int] = []
    run = tokenizer._run
    monkeypatch.setattr(tokenizer, "_run", lambda part: lengths.append(len(part)) or run(part))
    embeddings = tokenizer.embed(samples)
    # This one sees no further than the overlap is wide, so windows change nothing at all.
    assert embeddings.shape == once.shape
    assert np.abs(embeddings - once).max() < 1e-6
    assert max(lengths) <= LONGEST_S * 16_000
    assert (len(lengths) == 1) == (seconds <= LONGEST_S)
    assert min(lengths) > 0.95 * max(lengths)


def test_a_segment_tokenizer_hears_what_is_around_a_stretch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer(saved(tiny(metadata={"context": "segment"}), tmp_path), threads=1)
    samples = noise(3.0)
    heard: list[int] = []
    run = tokenizer._run
    monkeypatch.setattr(tokenizer, "_run", lambda part: heard.append(len(part)) or run(part))
    middle = tokenizer.embed(samples[16_000:32_000], samples[:16_000], samples[32_000:])
    assert heard == [48_000]
    assert np.array_equal(middle, run(samples)[25:50])


def test_an_answer_that_is_too_short_is_an_error(tmp_path: Path) -> None:
    tokenizer = Tokenizer(saved(tiny(pads=[0, 0]), tmp_path), threads=1)
    with pytest.raises(TokenizerError, match="gave 24 embeddings for 25 frames"):
        tokenizer.embed(noise(1.0))
