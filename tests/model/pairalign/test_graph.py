"""The `pairalign` file: what its graph writes against the textbook, and what it promises as a tokenizer."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from model import contract
from model.codebook import Codebook, CodebookError
from model.encoder import FRAME_SAMPLES
from model.pairalign.graph import build
from model.pairalign.part import PartError
from model.pairalign.stitching import stitch
from model.subgraph import following
from model.tokenizer import Tokenizer
from tests.model.pairalign.textbook import SMALL, random_part, write


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pairalign") / "random.onnx"
    build(random_part(), out)
    return out


@pytest.fixture(scope="module")
def tokenizer(file: Path) -> Tokenizer:
    return Tokenizer(file, threads=1)


def sound(frames: int, seed: int = 0) -> np.ndarray:
    count = frames * FRAME_SAMPLES
    level = 0.1 * np.abs(np.sin(np.arange(count) / 2_500))
    return (level * np.random.default_rng(seed).standard_normal(count)).astype(np.float32)


@pytest.mark.parametrize(("rate", "beam"), [(0, 1), (1, 1), (0, 2), (1, 4)])
def test_the_loop_writes_what_the_textbook_does(tmp_path: Path, rate: int, beam: int) -> None:
    part = random_part()
    build(part, tmp_path / "p.onnx", rate=rate, beam=beam)
    tokenizer = Tokenizer(tmp_path / "p.onnx", threads=1)
    lengths = set()
    for frames in (1, 2, 6, 7, 8, 19, 20, 21, 33, 34, 61, 150):
        embeddings = tokenizer.embed(sound(frames, frames))
        windows = [(at, write(part, embeddings[at : at + n], rate, beam)) for at, n in SMALL.windows(frames)]
        lengths |= {1 + int((np.diff(ids) != 0).sum()) for _, ids in windows}
        assert tokenizer.frame_ids(sound(frames, frames)).tolist() == stitch(windows).tolist()
    assert len(lengths) > 4  # some windows end early and some late, else this shows little


def test_a_beam_finds_likelier_sequences(tmp_path: Path, tokenizer: Tokenizer) -> None:
    build(random_part(), tmp_path / "p.onnx", beam=4)
    wide = Tokenizer(tmp_path / "p.onnx", threads=1)
    assert wide.frame_ids(sound(80)).tolist() != tokenizer.frame_ids(sound(80)).tolist()
    assert contract.check(tmp_path / "p.onnx").passed
    clips = np.stack([sound(90, seed) for seed in range(3)])
    together = wide._session.run(["ids"], {"waveform": clips})[0]
    for row, clip in zip(together, clips, strict=True):
        assert row.tolist() == wide.frame_ids(clip).tolist()


def test_rates_differ(tmp_path: Path, tokenizer: Tokenizer) -> None:
    build(random_part(), tmp_path / "p.onnx", rate=0)
    assert Tokenizer(tmp_path / "p.onnx").frame_ids(sound(80)).tolist() != tokenizer.frame_ids(sound(80)).tolist()


def test_the_parts_score_map_is_the_files(tmp_path: Path) -> None:
    part = random_part()
    build(replace(part, description=replace(part.description, score_map=(1.5, 2.0, -3.25))), tmp_path / "p.onnx")
    assert Tokenizer(tmp_path / "p.onnx").info.score_map == (1.5, 2.0, -3.25)


def test_it_keeps_the_contract(file: Path) -> None:
    report = contract.check(file)
    assert report.passed, report.findings
    assert not [finding for finding in report.findings if finding.level == "warning"]


def test_clips_of_a_batch_get_what_each_gets_alone(tokenizer: Tokenizer) -> None:
    clips = np.stack([sound(90, seed) for seed in range(3)])
    together = tokenizer._session.run(["ids"], {"waveform": clips})[0]
    for row, clip in zip(together, clips, strict=True):
        assert row.tolist() == tokenizer.frame_ids(clip).tolist()


def test_tokens_are_the_graphs_own(tokenizer: Tokenizer) -> None:
    clip = sound(130)
    string = tokenizer.tokenize(clip)
    assert np.repeat(string.ids, string.durations).tolist() == tokenizer.frame_ids(clip).tolist()
    assert string.to_bytes() == tokenizer.tokenize(clip).to_bytes()
    assert string.ids.tolist() != tokenizer.codebook.tokenize(tokenizer.embed(clip)).tolist()
    assert len(tokenizer.tokenize(sound(1))) == 1
    assert len(tokenizer.tokenize(sound(1)[:100])) == 0


def test_another_codebook_is_refused(tokenizer: Tokenizer) -> None:
    other = Codebook(tokenizer.codebook.centroids[:100])
    with pytest.raises(CodebookError, match="its own codebook"):
        tokenizer.tokenize(sound(10), other)


def test_an_encoder_that_is_not_its_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PartError, match="belongs to the tokenizer"):
        build(replace(random_part(), encoder_sha256="0" * 64), tmp_path / "p.onnx")
    with pytest.raises(PartError, match=r"no rate 2\.5"):
        build(random_part(), tmp_path / "p.onnx", rate=2.5)
    with pytest.raises(PartError, match=r"no rate -0\.1: 0 to 2"):
        build(random_part(), tmp_path / "p.onnx", rate=-0.1)
    for beam in (0, 17):
        with pytest.raises(PartError, match=f"no beam of {beam}"):
            build(random_part(), tmp_path / "p.onnx", beam=beam)
    assert not list(tmp_path.iterdir())


def test_ids_that_need_more_than_embeddings_break_the_contract(file: Path, tmp_path: Path) -> None:
    model = onnx.load(file)
    for node in model.graph.node:
        for number, name in enumerate(node.output):
            if name == "ids":
                node.output[number] = "ids_before"
    model.graph.node.extend(
        [
            onnx.helper.make_node("ReduceMax", ["waveform"], ["loudest"], keepdims=0),
            onnx.helper.make_node("Cast", ["loudest"], ["loud"], to=onnx.TensorProto.INT64),
            onnx.helper.make_node("Add", ["ids_before", "loud"], ["ids"]),
        ]
    )
    with pytest.raises(ValueError, match="does not follow"):
        following(model.SerializeToString(), "embeddings", "ids")
    onnx.save(model, tmp_path / "odd.onnx")
    report = contract.check(tmp_path / "odd.onnx")
    assert not report.passed
    assert any(f.rule == "ids" and "does not follow" in f.message for f in report.findings)


def test_an_unknown_kind_of_tokens_is_named(file: Path, tmp_path: Path) -> None:
    model = onnx.load(file)
    for entry in model.metadata_props:
        if entry.key == "tokens":
            entry.value = "guessed"
    onnx.save(model, tmp_path / "odd.onnx")
    assert any("declares tokens 'guessed'" in f.message for f in contract.check(tmp_path / "odd.onnx").findings)
