from pathlib import Path

import numpy as np
import onnx
import pytest

from model import tokenizer as module
from model.codebook import Codebook, CodebookError
from model.tokenizer import Tokenizer, TokenizerError


def noisy_speech_like(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise bursts and glides: nothing like speech to us, but it visits many tokens."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * 16_000)) / 16_000
    pitch = 120 + 60 * np.sin(2 * np.pi * 0.7 * time) + 20 * np.sin(2 * np.pi * 3.1 * time)
    voice = sum(np.sin(k * 2 * np.pi * np.cumsum(pitch) / 16_000) / k for k in range(1, 12))
    envelope = np.clip(np.sin(2 * np.pi * 2.3 * time), 0, 1) + 0.3 * np.clip(np.sin(2 * np.pi * 5.9 * time), 0, 1)
    return (0.1 * envelope * voice + 0.02 * rng.standard_normal(len(time))).astype(np.float32)


@pytest.fixture(scope="module")
def tokenizer(tokenizer_path: Path) -> Tokenizer:
    return Tokenizer(tokenizer_path, threads=1)


def test_embeddings_are_unit_and_one_a_frame(tokenizer: Tokenizer) -> None:
    samples = noisy_speech_like(1.234)
    embeddings = tokenizer.embed(samples)
    assert embeddings.shape == (len(samples) // tokenizer.frame_samples, tokenizer.codebook.dim)
    assert np.allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-4)
    assert len(tokenizer.embed(samples[:100])) == 0


def test_ids_of_the_graph_are_the_nearest_centroids(tokenizer: Tokenizer) -> None:
    samples = noisy_speech_like(6)
    assert (tokenizer.frame_ids(samples) == tokenizer.codebook.assign(tokenizer.embed(samples))).mean() >= 0.999


@pytest.mark.parametrize("block_frames", [37, 250, 1_000])
def test_blocks_give_exactly_the_ids_of_one_pass(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, block_frames: int
) -> None:
    samples = noisy_speech_like(33)
    once = tokenizer.frame_ids(samples)
    monkeypatch.setattr(module, "BLOCK_FRAMES", block_frames)
    embeddings = tokenizer.embed(samples)
    assert (tokenizer.codebook.assign(embeddings) == once).all()


def test_a_stretch_with_its_context_is_exactly_that_stretch_of_the_whole(tokenizer: Tokenizer) -> None:
    samples = noisy_speech_like(20)
    whole = tokenizer.frame_ids(samples)
    frame = tokenizer.frame_samples
    left, right = tokenizer.info.left_context_samples, tokenizer.info.right_context_samples
    left += -left % frame
    for start, stop in ((0, 50), (13, 130), (200, 377), (300, 500)):
        before = samples[max(0, start * frame - left) : start * frame]
        after = samples[stop * frame : stop * frame + right]
        ids = tokenizer.codebook.assign(tokenizer.embed(samples[start * frame : stop * frame], before, after))
        assert (ids == whole[start:stop]).all()


def test_less_context_than_declared_would_change_tokens(tokenizer: Tokenizer) -> None:
    samples = noisy_speech_like(20)
    alone = tokenizer.embed(samples[200 * 640 : 240 * 640])
    assert np.abs(alone - tokenizer.embed(samples)[200:240]).max() > 1e-3


def test_another_codebook_is_used_and_a_wrong_one_refused(tokenizer: Tokenizer) -> None:
    samples = noisy_speech_like(3)
    few = Codebook(tokenizer.codebook.centroids[:7])
    string = tokenizer.tokenize(samples, few, offset=2.5)
    assert string.ids.max() < 7
    assert string.pq is None
    assert string.offset == 2.5
    with pytest.raises(CodebookError, match="4 dimensions"):
        tokenizer.tokenize(samples, Codebook(np.eye(4, dtype=np.float32)))


def test_context_must_be_whole_frames(tokenizer: Tokenizer) -> None:
    samples = noisy_speech_like(2)
    with pytest.raises(ValueError, match="no whole number"):
        tokenizer.embed(samples[6_400:], samples[:999])


def test_files_that_are_no_tokenizer_say_why(tmp_path: Path, tokenizer_path: Path) -> None:
    with pytest.raises(TokenizerError, match="cannot read"):
        Tokenizer(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(TokenizerError, match="not an ONNX file"):
        Tokenizer(tmp_path / "text.onnx")
    for damage, says in (
        (lambda m: _drop(m.graph.initializer, "codebook"), "not an ONNX file|no initialiser"),
        (lambda m: _drop(m.metadata_props, "licence", "key"), "lacks the metadata entry 'licence'"),
        (lambda m: _set(m, "context", "boundless"), "declares context 'boundless'"),
        (lambda m: _set(m, "frame_seconds", "soon"), "no number"),
    ):
        model = onnx.load(str(tokenizer_path))
        damage(model)
        onnx.save(model, str(tmp_path / "bad.onnx"))
        with pytest.raises(TokenizerError, match=says):
            Tokenizer(tmp_path / "bad.onnx")


def _drop(entries, name: str, key: str = "name") -> None:
    for entry in [entry for entry in entries if getattr(entry, key) == name]:
        entries.remove(entry)


def _set(model: onnx.ModelProto, key: str, value: str) -> None:
    for entry in model.metadata_props:
        if entry.key == key:
            entry.value = value
