"""The teacher's features: packing into windows, resuming, whitening, targets, and a teacher that is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.training import data, features, targets, teacher
from model.training.teacher import WIDTH, WINDOW_FRAMES
from tests.training.corpus import SMALL, random_teacher, targets_of

pytestmark = pytest.mark.training

CPU = torch.device("cpu")


def test_packing_keeps_windows_whole_and_covers_every_frame() -> None:
    frames = np.array([700, 100, 40, 2_000, 5], np.int64)
    placements = features.place(frames, np.arange(5))
    covered = [np.zeros(n, bool) for n in frames]
    taken: dict[int, np.ndarray] = {}
    for p in placements:
        assert p.at + p.frames <= WINDOW_FRAMES
        window = taken.setdefault(p.window, np.zeros(WINDOW_FRAMES, bool))
        assert not window[p.at : p.at + p.frames].any()
        window[p.at : p.at + p.frames] = True
        covered[p.recording][p.first : p.first + p.frames] = True
    assert all(c.all() for c in covered)


LEVEL = 8  # of the int16 range a frame


class Gauge(torch.nn.Module):
    """Says of each frame how loud it is, in levels, and where in its window it lies."""

    def forward(self, waveform: Tensor) -> Tensor:
        out = torch.zeros(len(waveform), WINDOW_FRAMES, WIDTH)
        out[:, :, 0] = waveform.view(len(waveform), WINDOW_FRAMES, -1).mean(2) * 32767 / LEVEL
        out[:, :, 1] = torch.arange(WINDOW_FRAMES)
        return out


def stairs(*lengths: int) -> data.Pack:
    """A pack whose frames are constant: the level of each is its number."""
    frames = np.array(lengths, np.int64)
    samples = np.repeat(np.arange(frames.sum()) * LEVEL, 640).astype(np.int16)
    entries = [data.Entry(f"{i}.wav", "", "", "speech") for i in range(len(lengths))]
    return data.Pack(samples, np.concatenate([[0], np.cumsum(frames)[:-1]]), frames, entries)


def gauge() -> teacher.Teacher:
    return Gauge()  # type: ignore[return-value]


def test_each_frame_gets_the_feature_of_its_own_sound_in_the_middle_of_its_context(tmp_path: Path) -> None:
    pack = stairs(100, 1_800, 30)  # the second is longer than two windows
    stored = features.store_features(gauge, pack, tmp_path, CPU)
    assert np.abs(stored[:, 0] - np.arange(1_930)).max() <= 0.5
    # At a seam a frame is taken from the window in which it lies further from the edge.
    at = np.floor(stored[100:1_900, 1].astype(np.float32))
    seams = np.flatnonzero(np.diff(at) < 0) + 1
    assert len(seams) == 2
    assert (at[seams] >= features.OVERLAP_FRAMES // 2).all()
    assert (at[seams - 1] < WINDOW_FRAMES - features.OVERLAP_FRAMES // 2 + 1).all()


def test_features_resume_after_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "BATCH", 1)
    pack = stairs(*[300] * 6)  # two to a window
    whole = np.array(features.store_features(gauge, pack, tmp_path, CPU))
    order = np.random.default_rng(0).permutation(6)
    assert (np.abs(whole[:, 0] - np.arange(1_800)) <= 0.5).all()
    # The first window was done, and marked here to see that it stays; what came after was lost.
    partial = np.memmap(tmp_path / features.FEATURES_FILE, np.float16, "r+", shape=whole.shape)
    done = np.isin(np.arange(1_800) // 300, order[:2])
    partial[done], partial[~done] = -7.0, 0.0
    partial.flush()
    (tmp_path / features.JOURNAL_FILE).write_text('{"windows": 1}')
    again = np.array(features.store_features(gauge, pack, tmp_path, CPU))
    assert (again[done] == -7.0).all()
    assert (again[~done] == whole[~done]).all()
    assert json.loads((tmp_path / features.JOURNAL_FILE).read_text()) == {"windows": 3}

    def no_teacher() -> teacher.Teacher:
        raise AssertionError("all windows are done")

    assert (features.store_features(no_teacher, pack, tmp_path, CPU) == again).all()


def test_the_features_of_a_real_teacher_resume_to_the_same(work: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(work, run)
    whole = np.array(np.memmap(run / features.FEATURES_FILE, np.float16, "r"))
    (run / features.JOURNAL_FILE).write_text('{"windows": 0}')
    partial = np.memmap(run / features.FEATURES_FILE, np.float16, "r+")
    partial[len(partial) // 2 :] = 0
    partial.flush()
    features.store_features(random_teacher, data.read_pack(run), run, CPU)
    assert (np.memmap(run / features.FEATURES_FILE, np.float16, "r") == whole).all()


def test_whitened_features_are_white(work: Path) -> None:
    raw = np.memmap(work / features.FEATURES_FILE, np.float16, "r").reshape(-1, WIDTH).astype(np.float32)
    whitening = features.load_whitening(work)
    white = (raw - whitening.mean) @ whitening.matrix
    spread = np.cov(white, rowvar=False)
    assert white.shape[1] == SMALL.dim
    assert np.abs(white.mean(0)).max() < 0.1
    assert np.abs(spread - np.diag(np.diag(spread))).max() < 0.05
    assert (np.diag(spread) <= 1.01).all()
    expected = white / np.linalg.norm(white, axis=1, keepdims=True)
    assert np.abs(targets_of(work) - expected).max() < 2e-3
    assert not list(work.glob("*partial*"))


def test_targets_survive_a_reading_of_their_own(tmp_path: Path) -> None:
    pooled = np.random.default_rng(0).standard_normal((300, 8)).astype(np.float16)
    whitening = features.fit_whitening(pooled, 4)
    made = targets.whitened(pooled, whitening, tmp_path / targets.TARGETS_FILE)
    assert (np.memmap(tmp_path / targets.TARGETS_FILE, np.float16, "r").reshape(300, 4) == made).all()
    assert np.linalg.norm(made.astype(np.float32), axis=1) == pytest.approx(np.ones(300), abs=2e-3)


def test_a_teacher_that_is_not_the_published_one_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({k: v.contiguous() for k, v in random_teacher().state_dict().items()}, tmp_path / "t.safetensors")
    with pytest.raises(teacher.TeacherError, match="not the published encoder"):
        teacher.load_teacher(str(tmp_path / "t.safetensors"))
    with pytest.raises(teacher.TeacherError, match="no such file"):
        teacher.load_teacher(str(tmp_path / "none.safetensors"))


def test_names_of_the_publisher_are_understood() -> None:
    own = random_teacher().state_dict()
    names = {
        "model.encoder.conv1.weight": "conv1.weight",
        "model.encoder.embed_positions.weight": "positional_embedding",
        "model.encoder.layers.3.self_attn.q_proj.bias": "blocks.3.attn.query.bias",
        "model.encoder.layers.3.self_attn.out_proj.weight": "blocks.3.attn.out.weight",
        "model.encoder.layers.3.self_attn_layer_norm.weight": "blocks.3.attn_ln.weight",
        "model.encoder.layers.3.fc2.bias": "blocks.3.mlp.2.bias",
        "model.encoder.layers.3.final_layer_norm.bias": "blocks.3.mlp_ln.bias",
        "model.encoder.layer_norm.weight": "ln_post.weight",
    }
    renamed = teacher._own_names({name: torch.zeros(1) for name in names} | {"model.decoder.x": torch.zeros(1)})
    assert set(renamed) == set(names.values())
    assert set(names.values()) <= set(own)
