"""The `accurate` graph against torch, with random weights of the true shapes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.numpy import load_file, save_file
from torch import Tensor

from model import accurate, tuned, whisper
from model.contract import check
from model.graph import IR_VERSION, OPSET, GraphBuilder
from model.tokenizer import Tokenizer, open_session
from model.training.teacher import Teacher
from model.trial import noise

pytestmark = pytest.mark.training

CLIPS_S = (0.3, 1.0, 12.0)
ABOUT = {"name": "accurate", "version": "7", "licence": "MIT", "trained_on": "dice"}


def random_teacher() -> Teacher:
    """Attention is made sharp, and positions are told apart, so that it matters which rows see which."""
    torch.manual_seed(5)
    model = Teacher()
    torch.nn.init.normal_(model.positional_embedding, std=0.5)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.query.weight.mul_(6.0)
            block.attn.value.weight.mul_(3.0)
    return model.eval().requires_grad_(False)


def random_part(rank: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(6)

    def draw(*sides: int, spread: float = 0.1) -> np.ndarray:
        return (rng.standard_normal(sides) * spread).astype(np.float16)

    part = {"ln_post.weight": 1 + draw(512), "ln_post.bias": draw(512)}
    for block in range(6):
        for layer, (rows, columns) in tuned.LAYERS.items():
            part[f"lora.{block}.{layer}.a"] = draw(rank, columns)
            part[f"lora.{block}.{layer}.b"] = draw(rows, rank)
    return part | {"projection.weight": draw(256, 512), "codebook": draw(1_024, 256)}


def features(model: Teacher, samples: np.ndarray) -> Tensor:
    """The clip alone, with silence behind it, from the first position on; float32 [frames, 512]."""
    frames = len(samples) // 640
    heard = torch.zeros(1, (frames + 50) * 640)
    heard[0, : frames * 640] = torch.from_numpy(samples[: frames * 640])
    return model.encode(model.log_mel(heard), 2 * frames)[0]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[float, np.ndarray]]:
    """A folder with weights, tuned part and both files, and what torch makes of the clips."""
    folder = tmp_path_factory.mktemp("accurate")
    model = random_teacher()
    weights = {f"encoder.{name}": value.numpy() for name, value in model.state_dict().items()}
    save_file(weights | {"decoder.ln.weight": np.zeros(3)}, folder / "weights.safetensors")
    part = random_part()
    with torch.inference_mode():
        for block in range(6):
            for layer in tuned.LAYERS:
                a, b = (torch.from_numpy(part[f"lora.{block}.{layer}.{side}"]).float() for side in "ab")
                model.blocks[block].get_submodule(layer).weight.add_(b @ a)
        for kind in ("weight", "bias"):
            getattr(model.ln_post, kind).copy_(torch.from_numpy(part[f"ln_post.{kind}"]))
        of_clips = {seconds: features(model, noise(seconds)) for seconds in CLIPS_S}
        # Around their mean the rows of random weights differ; without it nearly all cosines would be 1.
        mean = of_clips[12.0].mean(0).half()
        projection = torch.from_numpy(part["projection.weight"]).float()
        expected = {s: torch.nn.functional.normalize((x - mean) @ projection.T, dim=-1) for s, x in of_clips.items()}
    part["projection.mean"] = mean.numpy()
    save_file(part, folder / "tuned.safetensors", ABOUT)
    for precision in ("fp32", "int8"):
        accurate.build(
            folder / "weights.safetensors", folder / "tuned.safetensors", folder / f"{precision}.onnx",
            precision=precision, expected=None,
        )  # fmt: skip
    return folder, {seconds: x.numpy() for seconds, x in expected.items()}


@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.9999), ("int8", 0.9)])
def test_the_graph_agrees_with_torch(made: tuple[Path, dict[float, np.ndarray]], precision: str, least: float) -> None:
    folder, expected = made
    tokenizer = Tokenizer(folder / f"{precision}.onnx", threads=1)
    for seconds in CLIPS_S:
        found = tokenizer.embed(noise(seconds))
        assert found.shape == expected[seconds].shape == (int(seconds * 25), 256)
        cosine = (found * expected[seconds]).sum(1)
        assert cosine.min() > least
        if len(found) > 50:
            assert (expected[seconds] @ expected[seconds].T).mean() < 0.2  # rows that are all alike would prove nothing


def test_what_the_file_says_of_itself(made: tuple[Path, dict[float, np.ndarray]]) -> None:
    folder, _ = made
    sizes = {}
    for precision in ("fp32", "int8"):
        tokenizer = Tokenizer(folder / f"{precision}.onnx", threads=1)
        info = tokenizer.info
        assert (info.context, info.left_context_samples, info.right_context_samples) == ("segment", 0, 0)
        assert info.frame_seconds == 0.04
        assert {key: getattr(info, key) for key in ABOUT} == ABOUT
        part = load_file(folder / "tuned.safetensors")["codebook"].astype(np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
        assert np.allclose(tokenizer.codebook.centroids, part, atol=1e-6)
        sizes[precision] = (folder / f"{precision}.onnx").stat().st_size
    assert sizes["int8"] < 0.6 * sizes["fp32"]


def test_both_files_honour_the_contract(made: tuple[Path, dict[float, np.ndarray]]) -> None:
    folder, _ = made
    assert {f.rule for f in check(folder / "fp32.onnx").findings if f.level != "ok"} == set()
    assert {(f.level, f.rule) for f in check(folder / "int8.onnx").findings if f.level != "ok"} == {
        ("warning", "batch")
    }


def test_a_window_is_filled_to_its_end_and_not_beyond(made: tuple[Path, dict[float, np.ndarray]]) -> None:
    folder, _ = made
    tokenizer = Tokenizer(folder / "fp32.onnx", threads=1)
    assert len(tokenizer.frame_ids(noise(30.0))) == 750
    assert len(tokenizer.frame_ids(noise(30.04))) == 750
    assert tokenizer.embed(noise(31.0)).shape == (775, 256)  # the runtime cuts it


def test_parts_that_do_not_fit_are_refused(made: tuple[Path, dict[float, np.ndarray]], tmp_path: Path) -> None:
    folder, _ = made
    weights, good = folder / "weights.safetensors", load_file(folder / "tuned.safetensors")
    out = tmp_path / "out.onnx"

    def attempt(part: dict[str, np.ndarray], about: dict[str, str], says: str) -> None:
        save_file(part, tmp_path / "part.safetensors", about)
        with pytest.raises(tuned.TunedError, match=says):
            accurate.build(weights, tmp_path / "part.safetensors", out, expected=None)

    layer = "lora.5.mlp.0"
    attempt({k: v for k, v in good.items() if k != f"{layer}.b"}, ABOUT, rf"{layer}\.b should have .*found nothing")
    attempt(good | {f"{layer}.b": good[f"{layer}.b"].T.copy()}, ABOUT, r"shape \(2048, 3\), found \(3, 2048\)")
    attempt(good | {f"{layer}.a": good[f"{layer}.a"][0]}, ABOUT, r"shape \(rank, 512\), found \(512,\)")
    attempt(good | {"projection.mean": np.full(512, np.nan, np.float32)}, ABOUT, "not finite")
    attempt(good | {"codebook": np.zeros((1_024, 256), np.float16)}, ABOUT, "rows of zeros")
    attempt(good, {"name": "accurate", "version": "1"}, "lacks the metadata licence, trained_on")
    with pytest.raises(tuned.TunedError, match="cannot be read"):
        accurate.build(weights, tmp_path / "none.safetensors", out, expected=None)
    assert not out.exists()


def test_an_encoder_that_is_not_the_published_one_is_refused(
    made: tuple[Path, dict[float, np.ndarray]], tmp_path: Path
) -> None:
    folder, _ = made
    weights, part = folder / "weights.safetensors", folder / "tuned.safetensors"
    with pytest.raises(whisper.EncoderError, match="not the published encoder"):
        accurate.build(weights, part, tmp_path / "out.onnx")
    tensors = whisper.own_names(load_file(weights))
    accurate.build(weights, part, tmp_path / "out.onnx", expected=whisper.fingerprint(tensors))
    save_file(tensors | {"conv1.bias": np.zeros(511, np.float32)}, tmp_path / "w.safetensors")
    with pytest.raises(whisper.EncoderError, match=r"conv1\.bias should have shape \(512,\), found \(511,\)"):
        whisper.read_encoder(tmp_path / "w.safetensors", None)
    (tmp_path / "text.safetensors").write_text("hello, this is no safetensors file")
    with pytest.raises(whisper.EncoderError, match="cannot be read as safetensors"):
        whisper.read_encoder(tmp_path / "text.safetensors")


def test_the_front_end_is_whispers_own() -> None:
    g = GraphBuilder()
    out = accurate.front_end(g, "window")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("window", out)]
    graph = helper.make_graph(g.nodes, "mel", ends[:1], ends[1:], list(g.constants.values()))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    windows = np.stack([noise(30.0), 0.01 * noise(30.0, 1)])
    (found,) = open_session(model.SerializeToString(), threads=1).run(None, {"window": windows})
    expected = Teacher().log_mel(torch.from_numpy(windows)).numpy()
    assert found.shape == expected.shape == (2, 80, 3_000)
    assert np.abs(found - expected).max() < 1e-4


def test_parameters_are_those_of_the_torch_definition() -> None:
    assert {name: tuple(p.shape) for name, p in Teacher().named_parameters()} == dict(whisper.parameters())
