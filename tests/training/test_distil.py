import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model import frontend
from model.audio import SAMPLE_RATE
from model.codebook import fit_codebook
from model.encoder import FRAME_SAMPLES, EncoderShape
from model.export import Description, ExportError, export, read_weights
from model.tokenizer import Tokenizer
from model.training import data, stages, teacher
from model.training.augment import Augmentation, augment
from model.training.distil import (
    CHECKPOINT_FILE,
    LOG_FILE,
    DistilSettings,
    Sampler,
    distil,
    frame_contrast,
    learning_rate,
)
from model.training.student import LogMel, Student
from tests.training.corpus import write_corpus

SMALL = EncoderShape(width=16, hidden=32, blocks=2, kernel=5, dim=16)
QUICK = DistilSettings(
    minutes=0.15, warmup_steps=10, batch=4, contrast_frames=64, evaluate_steps=5, checkpoint_s=0.5, shape=SMALL
)


def random_teacher() -> teacher.Teacher:
    torch.manual_seed(3)
    model = teacher.Teacher()
    torch.nn.init.normal_(model.positional_embedding, std=0.02)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed corpus with the features of a teacher of random weights: what a run has when it starts to distil."""
    folder = write_corpus(tmp_path_factory.mktemp("corpus"))
    work = tmp_path_factory.mktemp("work")
    pack = data.write_pack(data.scan_folder(folder), folder, work, workers=1)
    features = teacher.store_features(random_teacher, pack, work, torch.device("cpu"))
    teacher.save_whitening(teacher.fit_whitening(features, SMALL.dim), work)
    return work


def sampler_of(work: Path, settings: DistilSettings = QUICK) -> Sampler:
    pack = data.read_pack(work)
    features = np.memmap(work / teacher.FEATURES_FILE, np.float16, "r", shape=(int(pack.frames.sum()), teacher.WIDTH))
    return Sampler(pack, features, teacher.load_whitening(work), settings)


def test_torch_front_end_is_the_one_definition() -> None:
    samples = np.random.default_rng(0).standard_normal(9_999).astype(np.float32) * 0.1
    ours = LogMel()(torch.from_numpy(samples[None]))[0].T.numpy()
    assert ours.shape == (9_999 // frontend.HOP, frontend.MELS)
    assert np.abs(ours - frontend.log_mel(samples)).max() < 1e-3


def test_exported_graph_agrees_with_torch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    student = Student(EncoderShape()).eval()
    weights = tmp_path / "student.safetensors"
    from safetensors.torch import save_file

    tensors = {name: value.contiguous() for name, value in student.state_dict().items()}
    save_file(tensors, weights, {"shape": json.dumps(vars(student.shape))})
    samples = (np.random.default_rng(0).standard_normal(20 * SAMPLE_RATE) * 0.1).astype(np.float32)
    with torch.inference_mode():
        expected = student(torch.from_numpy(samples[None]))[0].numpy()
    codebook = fit_codebook(expected, 64, parts=8, iterations=4)
    out = tmp_path / "t.onnx"
    export(weights, codebook, Description("t", "1", "Apache-2.0", "nothing"), out)
    tokenizer = Tokenizer(out, threads=1)
    assert np.abs(tokenizer.embed(samples) - expected).max() < 1e-4
    assert (tokenizer.frame_ids(samples) == codebook.assign(expected)).mean() >= 0.999
    assert tokenizer.codebook.sha256 == codebook.sha256
    assert tokenizer.info.left_context_samples == student.shape.context_samples
    tensors.pop("head.bias")
    save_file(tensors, weights, {"shape": json.dumps(vars(student.shape))})
    with pytest.raises(ExportError, match=r"head\.bias should have shape \(256,\), found nothing"):
        read_weights(weights)


def test_a_frame_sees_no_further_than_its_declared_context() -> None:
    torch.manual_seed(0)
    student = Student(SMALL).eval()
    frames = 60
    samples = torch.randn(1, frames * FRAME_SAMPLES) * 0.1
    at, context = 30, SMALL.context_samples
    changed = samples.clone()
    changed[:, : at * FRAME_SAMPLES - context] = 0.5
    changed[:, (at + 1) * FRAME_SAMPLES + context :] = -0.5
    with torch.inference_mode():
        assert torch.equal(student(samples)[0, at], student(changed)[0, at])
        changed[:, at * FRAME_SAMPLES - context + FRAME_SAMPLES : at * FRAME_SAMPLES] = 0.5
        assert not torch.equal(student(samples)[0, at], student(changed)[0, at])


def test_frame_contrast_agrees_with_the_textbook() -> None:
    torch.manual_seed(0)
    embedding = torch.nn.functional.normalize(torch.randn(9, 5), dim=1)
    target = torch.nn.functional.normalize(torch.randn(9, 5), dim=1)
    place = torch.tensor([0, 1, 2, 3, 20, 21, 22, 40, 41])
    total = 0.0
    for i in range(9):
        terms = [
            float(torch.exp(embedding[i] @ target[j] / 0.1))
            for j in range(9)
            if j == i or abs(int(place[i] - place[j])) > 2
        ]
        total -= float(embedding[i] @ target[i]) / 0.1 - np.log(sum(terms))
    assert float(frame_contrast(embedding, target, place, 0.1, 2)) == pytest.approx(total / 9, rel=1e-5)


def test_packing_keeps_windows_whole_and_covers_every_frame() -> None:
    frames = np.array([700, 100, 40, 2_000, 5], np.int64)
    placements = teacher.place(frames, np.arange(5))
    covered = [np.zeros(n, bool) for n in frames]
    taken: dict[int, np.ndarray] = {}
    for p in placements:
        assert p.at + p.frames <= teacher.WINDOW_FRAMES
        window = taken.setdefault(p.window, np.zeros(teacher.WINDOW_FRAMES, bool))
        assert not window[p.at : p.at + p.frames].any()
        window[p.at : p.at + p.frames] = True
        covered[p.recording][p.first : p.first + p.frames] = True
    assert all(c.all() for c in covered)


def test_whitened_features_are_white(work: Path) -> None:
    sampler = sampler_of(work)
    raw = torch.from_numpy(np.asarray(sampler.features, np.float32))
    white = ((raw - sampler.mean) @ sampler.matrix).numpy()
    spread = np.cov(white, rowvar=False)
    assert np.abs(white.mean(0)).max() < 0.1
    assert np.abs(spread - np.diag(np.diag(spread))).max() < 0.05
    assert (np.diag(spread) <= 1.01).all()


def test_isolated_cuts_keep_the_targets_of_their_context(work: Path) -> None:
    sampler = sampler_of(work, replace(QUICK, isolated=1.0))
    batch = sampler.draw(np.random.default_rng(1))
    stored = torch.nn.functional.normalize(
        (torch.from_numpy(np.asarray(sampler.features, np.float32)) - sampler.mean) @ sampler.matrix, dim=-1
    )
    valid = batch.target[batch.valid]
    assert len(valid) > 100
    # Every target is one of the stored features of the full recordings.
    assert float((valid @ stored.T).max(1).values.min()) > 0.999
    assert not batch.valid.all()


def test_augmentation_changes_the_sound_and_stays_in_range() -> None:
    generator = torch.Generator().manual_seed(0)
    waveform = torch.randn(16, 16_000) * 0.1
    always = Augmentation(noise=1.0, room=1.0, tilt=1.0, telephone=1.0)
    out = augment(waveform, torch.randn(16, 16_000), always, generator)
    assert out.shape == waveform.shape
    assert torch.isfinite(out).all()
    assert out.abs().max() <= 1.0
    nothing = Augmentation(gain_db=(0.0, 0.0), noise=0.0, room=0.0, tilt=0.0, telephone=0.0)
    assert torch.allclose(augment(waveform, waveform, nothing, generator), waveform, atol=1e-4)


def test_learning_rate_warms_up_and_follows_the_budget() -> None:
    at = ((0, 0.0), (5, 0.0), (300, 0.0), (300, 0.5), (300, 1.0))
    rates = [learning_rate(QUICK, step, share) for step, share in at]
    assert rates[0] < rates[1] < rates[2] == pytest.approx(QUICK.learning_rate)
    assert rates[4] == pytest.approx(QUICK.final_rate)
    assert rates[3] == pytest.approx((QUICK.learning_rate + QUICK.final_rate) / 2)


def test_training_learns_and_leaves_all_that_export_needs(work: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(work, run)
    sampler = sampler_of(run)
    scores = distil(sampler, run, torch.device("cpu"), QUICK)
    lines = [json.loads(line) for line in (run / LOG_FILE).read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert scores["held_out_cosine"] > lines[0]["held_out_cosine"]
    stages.save_codebook(
        stages.fit_own_codebook(stages.load_student(run), sampler.pack, torch.device("cpu")), run / stages.CODEBOOK_FILE
    )
    stages.export_work(run, Description("tiny", "1", "Apache-2.0", "nothing"), tmp_path / "tiny.onnx")
    assert Tokenizer(tmp_path / "tiny.onnx").codebook.dim == SMALL.dim


def test_a_killed_run_goes_on_where_it_was(work: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(work, run)
    child = subprocess.Popen([sys.executable, "-c", _CHILD.format(run=str(run))])
    deadline = time.monotonic() + 60
    while not (run / CHECKPOINT_FILE).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.7)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    at_kill = torch.load(run / CHECKPOINT_FILE, weights_only=True)
    assert at_kill["step"] > 0
    settings = replace(QUICK, minutes=at_kill["spent_s"] / 60 + 0.02)
    distil(sampler_of(run), run, torch.device("cpu"), settings)
    after = torch.load(run / CHECKPOINT_FILE, weights_only=True)
    assert after["step"] > at_kill["step"]
    # The budget counts what was spent before the kill: this run had little more than a second left.
    assert after["spent_s"] < at_kill["spent_s"] + 10


_CHILD = """
import torch
from pathlib import Path
from tests.training.test_distil import QUICK, sampler_of
from dataclasses import replace
from model.training.distil import distil
run = Path({run!r})
distil(sampler_of(run), run, torch.device("cpu"), replace(QUICK, minutes=5.0))
"""


def test_features_resume_after_a_stop(work: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(work, run)
    whole = np.array(np.memmap(run / teacher.FEATURES_FILE, np.float16, "r"))
    (run / teacher.JOURNAL_FILE).write_text('{"windows": 0}')
    partial = np.memmap(run / teacher.FEATURES_FILE, np.float16, "r+")
    partial[len(partial) // 2 :] = 0
    partial.flush()
    teacher.store_features(random_teacher, data.read_pack(run), run, torch.device("cpu"))
    assert (np.memmap(run / teacher.FEATURES_FILE, np.float16, "r") == whole).all()


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


def test_the_command_says_what_is_missing_in_one_line(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "sound", recordings=3, seconds=1.0)
    words = ["train", str(folder), "--work", str(tmp_path / "work"), "--teacher", str(tmp_path / "none.safetensors")]
    done = subprocess.run([sys.executable, "-m", "service", *words], capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("sayagain: teacher_unavailable: no such file")
    empty = tmp_path / "empty"
    empty.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "service", "train", str(empty), "--work", str(tmp_path / "w2")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("sayagain: training_failed: fewer than two recordings")
