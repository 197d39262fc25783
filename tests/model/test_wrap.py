"""Tokenizers made of somebody else's encoder, against what numpy makes of the encoder's own answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from model import audio
from model.contract import check
from model.export import Description
from model.tokenizer import Tokenizer
from model.trial import noise
from model.wrap import WrapError, Wrapped, wrap
from tests.indexer.sounds import babble, write
from tests.model.encoders import DIM, HOP, RIGHT_CONTEXT, encoder, features, saved

DESCRIPTION = Description("bands", "2", "CC0-1.0", "nothing")
SECONDS = 12.3


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return saved(encoder(), tmp_path / "encoder.onnx")


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    return write(tmp_path / "sound.wav", babble(SECONDS))


def made(path: Path, **changes: Any) -> Wrapped:
    options: dict[str, Any] = {
        "frame_seconds": 0.02, "context": "bounded", "right_context_samples": RIGHT_CONTEXT,
        "description": DESCRIPTION, "size": 32, **changes,
    }  # fmt: skip
    return wrap(path, path.parent / "made" / "tokenizer.onnx", **options)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def constant(path: Path, name: str) -> np.ndarray:
    tensors = {tensor.name: tensor for tensor in onnx.load(str(path)).graph.initializer}
    return np.asarray(numpy_helper.to_array(tensors[name]))


def framed(rows: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """The textbook: as many rows as frames, the last one as often as it takes."""
    frames = len(samples) // HOP
    return np.stack([rows[min(frame, len(rows) - 1)] for frame in range(frames)])


def test_embeddings_are_the_features_less_their_mean_at_unit_length(path: Path, sound: Path) -> None:
    wrapped = made(path, audio=[sound], size=64)  # 1,024 frames are wanted: all of it is heard
    speech = audio.read(sound)
    heard = framed(features(path, speech[: len(speech) // HOP * HOP]), speech)
    assert (wrapped.size, wrapped.dim, wrapped.failed) == (64, DIM, {})
    assert wrapped.heard_s == pytest.approx(len(heard) * 0.02)
    tokenizer = Tokenizer(wrapped.path, threads=1)
    for samples, missing in ((noise(3.16), 1), (noise(3.17), 0), (speech, 1)):
        rows = features(path, samples)
        expected = unit(framed(rows, samples) - heard.mean(axis=0))
        assert len(expected) - len(rows) == missing
        np.testing.assert_allclose(tokenizer.embed(samples), expected, atol=1e-5)
        similarity = expected @ tokenizer.codebook.centroids.T
        ids = tokenizer.frame_ids(samples)
        assert (similarity[np.arange(len(ids)), ids] > similarity.max(axis=1) - 1e-5).all()
    assert len(np.unique(ids)) == 64  # k-means leaves no centroid without a frame


def test_rows_beyond_the_last_frame_are_cut(sound: Path, tmp_path: Path) -> None:
    path = saved(encoder(pads=(160, 240)), tmp_path / "padded.onnx")
    samples = noise(1.0)
    rows = features(path, samples)
    assert len(rows) == 51
    np.save(tmp_path / "centres.npy", np.eye(DIM))
    tokenizer = Tokenizer(made(path, centroids=tmp_path / "centres.npy").path)
    np.testing.assert_allclose(tokenizer.embed(samples), unit(rows[:50]), atol=1e-5)
    assert len(tokenizer.frame_ids(samples)) == 50


@pytest.mark.parametrize("context", ["bounded", "segment"])
def test_the_contract_holds(path: Path, sound: Path, context: str) -> None:
    right = RIGHT_CONTEXT if context == "bounded" else 0
    wrapped = made(path, audio=[sound], context=context, right_context_samples=right)
    assert [finding for finding in check(wrapped.path).findings if finding.level != "ok"] == []
    info = Tokenizer(wrapped.path, threads=1).info
    told = {"name": info.name, "version": info.version, "licence": info.licence, "trained_on": info.trained_on}
    assert (told, info.score_map) == (DESCRIPTION.metadata(), None)
    assert (info.frame_seconds, info.context, info.right_context_samples) == (0.02, context, right)


def test_a_context_that_is_too_small_is_found_by_the_check(path: Path, sound: Path) -> None:
    wrapped = made(path, audio=[sound], right_context_samples=RIGHT_CONTEXT - 40)
    assert [finding.rule for finding in check(wrapped.path).findings if finding.level == "error"] == ["chunks"]


def test_clips_too_short_for_the_encoder_are_followed_by_silence(path: Path, sound: Path) -> None:
    tokenizer = Tokenizer(made(path, audio=[sound]).path, threads=1)
    clip = noise(0.02)
    with pytest.raises(Exception, match=r"."):
        features(path, clip)
    padded = np.concatenate([clip, np.zeros(HOP, np.float32)])
    mean = constant(tokenizer.path, "mean")
    np.testing.assert_allclose(tokenizer.embed(clip), unit(features(path, padded) - mean), atol=1e-5)


def test_the_centroids_of_others_are_taken(path: Path, sound: Path, tmp_path: Path) -> None:
    centres = np.random.default_rng(3).standard_normal((50, DIM)) * 4 + 3
    np.save(tmp_path / "centres.npy", centres)
    plain = made(path, centroids=tmp_path / "centres.npy")
    assert (plain.size, plain.heard_s) == (50, 0.0)
    np.testing.assert_allclose(Tokenizer(plain.path).codebook.centroids, unit(centres), atol=1e-6)
    centred = made(path, centroids=tmp_path / "centres.npy", audio=[sound])
    mean = constant(centred.path, "mean")
    assert np.abs(mean).max() > 1
    np.testing.assert_allclose(Tokenizer(centred.path).codebook.centroids, unit(centres - mean), atol=1e-5)
    again = made(path, centroids=tmp_path / "centres.npy", audio=[sound], centre=False)
    np.testing.assert_allclose(Tokenizer(again.path).codebook.centroids, unit(centres), atol=1e-6)


def test_without_centring_all_frames_are_alike(path: Path, sound: Path) -> None:
    def middle(wrapped: Wrapped) -> float:
        embeddings = Tokenizer(wrapped.path, threads=1).embed(audio.read(sound))
        return float(np.median(embeddings @ embeddings.T))

    assert middle(made(path, audio=[sound], centre=False)) > 0.7
    assert abs(middle(made(path, audio=[sound]))) < 0.3


def test_another_output_can_be_chosen_and_what_lies_above_is_left_out(path: Path, sound: Path) -> None:
    wrapped = made(path, audio=[sound], output="mapped", centre=False)
    samples = noise(1.0)
    expected = unit(features(path, samples, "mapped"))
    np.testing.assert_allclose(Tokenizer(wrapped.path).embed(samples)[:-1], expected, atol=1e-5)
    names = {tensor.name for tensor in onnx.load(str(wrapped.path)).graph.initializer}
    assert {"codebook", "encoder/codebook", "encoder/pq"} <= names
    assert not {"encoder/heavy", "encoder/offset", "pq"} & names


def test_the_same_audio_gives_the_same_file_and_broken_audio_is_named(path: Path, sound: Path, tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("hello")
    files = [sound, tmp_path / "text.wav", write(tmp_path / "b.wav", babble(3.0, 1)), tmp_path / "none.wav"]
    first = made(path, audio=files)
    blob = first.path.read_bytes()
    assert first.failed.keys() == {tmp_path / "text.wav", tmp_path / "none.wav"}
    assert (
        "cannot be decoded" in first.failed[tmp_path / "text.wav"] or "decoded" in first.failed[tmp_path / "text.wav"]
    )
    assert made(path, audio=files).path.read_bytes() == blob
    assert [file.name for file in first.path.parent.iterdir()] == ["tokenizer.onnx"]


def test_each_of_many_files_gives_its_share(path: Path, tmp_path: Path) -> None:
    files = [write(tmp_path / f"{i}.wav", babble(seconds, i)) for i, seconds in enumerate((0.5, 30.0, 1.0, 0.01))]
    wrapped = made(path, audio=files, size=64)  # 1,024 frames are wanted: the long one gives what the others lack
    assert wrapped.heard_s == pytest.approx(64 * 16 * 0.02)
    short = made(path, audio=files, size=8)  # 128 frames: 0.5 s, then an equal share of what is left for the others
    assert short.heard_s == pytest.approx(8 * 16 * 0.02)


def test_features_of_nothing_have_a_direction_all_the_same(path: Path, sound: Path) -> None:
    model = encoder()
    next(n for n in model.graph.node if n.op_type == "Conv").input[1] = "zeros"
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((48, 1, 400), np.float32), "zeros"))
    for name, value in (("floor", np.float32(1.0)), ("offset", np.zeros(DIM, np.float32))):
        tensor = next(t for t in model.graph.initializer if t.name == name)
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(value), name))
    np.save(path.parent / "centres.npy", np.eye(5, DIM))
    wrapped = made(saved(model, path), centroids=path.parent / "centres.npy")
    embeddings = Tokenizer(wrapped.path).embed(noise(0.5))
    assert embeddings.tolist() == np.eye(1, DIM).repeat(25, axis=0).tolist()
    assert check(wrapped.path).passed


def test_an_encoder_whose_tensors_lie_in_a_second_file(tmp_path: Path, sound: Path) -> None:
    onnx.save(encoder(), str(tmp_path / "two.onnx"), save_as_external_data=True, location="two.data", size_threshold=0)
    wrapped = made(tmp_path / "two.onnx", audio=[sound])
    assert check(wrapped.path).passed


ENCODERS: dict[str, tuple[Callable[[], onnx.ModelProto], dict[str, Any], str]] = {
    "two inputs": (lambda: encoder(more_inputs=("mask",)), {}, r"inputs \['input_values', 'mask'\]"),
    "a channel axis": (lambda: encoder(("batch", 1, "samples")), {}, r"takes float \['batch', 1, 'samples'\]"),
    "doubles": (lambda: encoder(dtype=TensorProto.DOUBLE), {}, "takes double"),
    "a fixed length": (lambda: encoder(("batch", 16_000)), {}, "takes 16000 samples and no others"),
    "clips in fours": (lambda: encoder((4, "samples")), {}, "takes 4 clips at a time"),
    "an old opset": (lambda: encoder(opset=12), {}, "opset 12: 13 or later"),
    "other frames": (encoder, {"frame_seconds": 0.04}, "gives 499 rows for 10 s of sound, about 0.02004 s a row"),
    "half a sample": (encoder, {"frame_seconds": 0.02003125}, "are 320.5 samples"),
    "no such output": (encoder, {"output": "logits"}, "no output 'logits': it has features, deep, mapped, log"),
    "columns for rows": (encoder, {"output": "log"}, "gives 24 rows for 10 s of sound"),
    "context below zero": (encoder, {"left_context_samples": -1}, "none can be negative"),
    "context of a segment": (encoder, {"context": "segment"}, "none can be declared"),
    "no audio": (encoder, {"audio": []}, "audio to fit a codebook to"),
    "too little audio": (encoder, {"size": 5_000}, r"12.3 s of sound cannot carry 5000 centroids: 100.0 s are needed"),
    "one centroid": (encoder, {"size": 1}, "a codebook of 1 centroids"),
}  # fmt: skip


@pytest.mark.parametrize("name", ENCODERS)
def test_what_cannot_be_wrapped_is_said(tmp_path: Path, sound: Path, name: str) -> None:
    make, changes, says = ENCODERS[name]
    path = saved(make(), tmp_path / "encoder.onnx")
    with pytest.raises(WrapError, match=says):
        made(path, **{"audio": [sound], **changes})
    assert not (tmp_path / "made").exists()


def test_files_that_are_none(path: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    np.save(tmp_path / "narrow.npy", np.ones((4, 7)))
    np.save(tmp_path / "nan.npy", np.full((4, DIM), np.nan))
    np.save(tmp_path / "objects.npy", np.array([{}, {}]), allow_pickle=True)
    np.savez(tmp_path / "several.npz", np.ones((4, DIM)))
    for name, says in (
        ("text", "is no .npy"), ("none.npy", "is no .npy"), ("objects.npy", "is no .npy"),
        ("nan.npy", r"holds float64 \[4, 20\]: finite"), ("several.npz", "holds NpzFile"),
        ("narrow.npy", "has 7 dimensions, the features of .* have 20"),
    ):  # fmt: skip
        with pytest.raises(WrapError, match=says):
            made(path, centroids=tmp_path / name)
    for name, says in (("none.onnx", "cannot read"), ("text", "is not an ONNX file")):
        with pytest.raises(WrapError, match=says):
            made(tmp_path / name, centroids=tmp_path / "narrow.npy")
