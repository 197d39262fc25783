"""The decoder's part: it comes back as it was stored, and what is amiss is named."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from model.pairalign.part import PartError, read_part, write_part
from model.pairalign.shape import DecoderShape, shape_from_json, shape_to_json, waves
from tests.model.pairalign.textbook import SMALL, random_part


def test_it_comes_back_in_half_precision(tmp_path: Path) -> None:
    part = random_part()
    part = replace(part, description=replace(part.description, score_map=(1.5, 2.0, -3.25)))
    write_part(part, tmp_path / "part.safetensors")
    back = read_part(tmp_path / "part.safetensors")
    assert (back.shape, back.rate, back.encoder_sha256) == (part.shape, part.rate, part.encoder_sha256)
    assert back.description == part.description
    assert np.allclose(back.codebook.centroids, part.codebook.centroids, atol=1e-3)
    assert np.allclose(np.linalg.norm(back.codebook.centroids, axis=1), 1.0, atol=1e-6)
    assert np.array_equal(back.codebook.pq, part.codebook.pq)
    for name, value in part.weights.items():
        assert np.array_equal(back.weights[name], value.astype(np.float16).astype(np.float32))
    assert not list(tmp_path.glob("*.partial"))


def amiss(path: Path, tensors: dict[str, np.ndarray] | None = None, metadata: dict[str, str] | None = None) -> Path:
    """A good part with some of it replaced; None takes an entry of the metadata out."""
    write_part(random_part(), path)
    with safe_open(path, "numpy") as file:
        kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        entries = file.metadata()
    save_file(kept | (tensors or {}), path, {k: v for k, v in (entries | (metadata or {})).items() if v})
    return path


def test_what_is_amiss_is_named(tmp_path: Path) -> None:
    path = tmp_path / "part.safetensors"
    nan = np.full(SMALL.width, np.nan, np.float16)
    for changed, says in (
        ({"tensors": {"norm.bias": np.zeros(3, np.float16)}}, r"norm.bias should have shape \(32,\), found \(3,\)"),
        ({"tensors": {"norm.bias": nan}}, "norm.bias has values that are not finite"),
        ({"tensors": {"codebook.centroids": np.ones((3, 256), np.float16)}}, "codebook.centroids should have shape"),
        ({"tensors": {"codebook.pq": np.ones((3, 16, 64), np.float16)}}, "a product quantiser of shape"),
        ({"metadata": {"rate": ""}}, "lacks the metadata rate"),
        ({"metadata": {"score_map": "1 2"}}, "score_map"),
        ({"metadata": {"rate": "2"}}, "its rate is 2, and there are 2"),
        ({"metadata": {"rate": "much"}}, "invalid literal"),
        ({"metadata": {"shape": "{}}"}}, "no decoder's shape"),
        ({"metadata": {"shape": shape_to_json(replace(SMALL, blocks=3))}}, "blocks.2.* found nothing"),
    ):
        with pytest.raises(PartError, match=says):
            read_part(amiss(path, **changed))
    path.write_bytes(b"hello")
    with pytest.raises(PartError, match="cannot be read"):
        read_part(path)
    with pytest.raises(PartError, match="cannot be read"):
        read_part(tmp_path / "none")


def test_rates_lie_on_lines_between_settings() -> None:
    part = random_part(replace(SMALL, rates=3))
    rows = part.weights["rate.weight"]
    for rate, by_hand in (
        (0, rows[0]), (1, rows[1]), (2, rows[2]), (0.25, 0.75 * rows[0] + 0.25 * rows[1]),
        (1.5, (rows[1] + rows[2]) / 2), (2.5, rows[2] + (rows[2] - rows[1]) / 2),
        (3, 2 * rows[2] - rows[1]),
    ):  # fmt: skip
        assert np.allclose(part.rate_row(rate), by_hand, atol=1e-6)
    for beyond in (-0.01, 3.01):
        with pytest.raises(PartError, match=r"0 to 3"):
            part.rate_row(beyond)
    (only,) = random_part(replace(SMALL, rates=1)).weights["rate.weight"]
    assert np.array_equal(random_part(replace(SMALL, rates=1)).rate_row(0.5), only)


def test_shapes_that_cannot_be_are_refused() -> None:
    assert shape_from_json(shape_to_json(SMALL)) == SMALL
    for changed in ({"heads": 3}, {"overlap_frames": 0}, {"overlap_frames": 11}):
        with pytest.raises(ValueError, match="cannot"):
            replace(SMALL, **changed)
    with pytest.raises(ValueError, match="no decoder's shape"):
        shape_from_json('{"sizes": 3}')


@pytest.mark.parametrize("frames", [1, 24, 25, 26, 75, 76, 125, 126, 500])
def test_windows_cover_all_frames_and_overlap(frames: int) -> None:
    shape = DecoderShape()
    windows = shape.windows(frames)
    assert windows[0][0] == 0
    assert sum(windows[-1]) == frames
    for (first, length), (following, _) in itertools.pairwise(windows):
        assert first + length == following + shape.overlap_frames
    assert all(length > shape.overlap_frames or len(windows) == 1 for _, length in windows)


def test_waves_by_hand() -> None:
    assert waves(3, 4)[2].tolist() == pytest.approx([np.sin(2), np.sin(0.2), np.cos(2), np.cos(0.2)], abs=1e-6)
