"""Distillation: the student's parts, and the batches it learns from."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from model import frontend
from model.audio import SAMPLE_RATE
from model.codebook import fit_codebook
from model.contract import check
from model.encoder import FRAME_SAMPLES, AttentionShape, ConvolutionShape, EncoderShape, shape_to_json
from model.export import Description, ExportError, export, read_weights
from model.graph import multiplies_in_8_bits
from model.tokenizer import Tokenizer
from model.training.data import Entry, Pack
from model.training.distil import Sampler, distil_loss
from model.training.imported import student_from_onnx
from model.training.losses import frame_contrast
from model.training.sound import Batch, Noises, Plan, Sound
from model.training.stages import save_student
from model.training.student import LogMel
from tests.training.corpus import DISTIL, SMALL, sampler_of, targets_of, write_corpus
from tests.training.students import ATTENTIVE, random_student

pytestmark = pytest.mark.training

CPU = torch.device("cpu")


@pytest.mark.parametrize("spec", [frontend.NARROW, frontend.WIDE])
def test_torch_front_end_is_the_one_definition(spec: frontend.FrontEnd) -> None:
    samples = np.random.default_rng(0).standard_normal(9_999).astype(np.float32) * 0.1
    ours = LogMel(spec)(torch.from_numpy(samples[None]))[0].T.numpy()
    assert ours.shape == (9_999 // frontend.HOP, spec.mels)
    assert np.abs(ours - spec.log_mel(samples)).max() < 1e-3


@pytest.mark.parametrize("shape", [ConvolutionShape(), AttentionShape(blocks=2)])
def test_exported_graph_agrees_with_torch(shape: EncoderShape, tmp_path: Path) -> None:
    student = random_student(shape)
    weights = tmp_path / "student.safetensors"
    from safetensors.torch import save_file

    tensors = {name: value.contiguous() for name, value in student.state_dict().items()}
    save_file(tensors, weights, {"shape": shape_to_json(shape)})
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
    save_file(tensors, weights, {"shape": shape_to_json(shape)})
    with pytest.raises(ExportError, match=r"head\.bias should have shape \(256,\), found nothing"):
        read_weights(weights)


def test_products_of_8_bits_are_near_exact_in_chunks_and_read_back(tmp_path: Path) -> None:
    student = random_student(AttentionShape(blocks=2, hidden=256, reach=4))
    weights, codebook = tmp_path / "student.safetensors", fit_codebook(np.eye(256, dtype=np.float32), 16, parts=0)
    save_student(student, weights)
    rng = np.random.default_rng(0)
    sounds = [(rng.standard_normal(2 * SAMPLE_RATE) * level).astype(np.float32) for level in (0.3, 0.1, 0.01)]
    for name, bits, heard in (("whole", 32, None), ("stored", 8, None), ("compact", 8, sounds)):
        export(weights, codebook, Description("t", "1", "-", "-"), tmp_path / f"{name}.onnx", bits, heard)  # type: ignore[arg-type]
    size = {name: (tmp_path / f"{name}.onnx").stat().st_size for name in ("whole", "stored", "compact")}
    assert size["compact"] < 1.05 * size["stored"] < 0.5 * size["whole"]
    assert multiplies_in_8_bits(onnx.load(tmp_path / "compact.onnx"))
    assert not multiplies_in_8_bits(onnx.load(tmp_path / "stored.onnx"))
    samples = (rng.standard_normal(200 * FRAME_SAMPLES) * 0.1).astype(np.float32)
    whole, compact = (Tokenizer(tmp_path / f"{name}.onnx", threads=1) for name in ("whole", "compact"))
    cosine = (whole.embed(samples) * compact.embed(samples)).sum(1)
    assert 0.99 < cosine.mean() < 0.999999
    # A chunk gets what it gets in one pass, to the digit.
    at = 90 * FRAME_SAMPLES
    part = compact.embed(samples[at:-at], samples[:at], samples[-at:])
    assert (compact.embed(samples)[90:-90] == part).all()
    assert [finding for finding in check(tmp_path / "compact.onnx").findings if finding.level == "error"] == []
    back, was = student_from_onnx(tmp_path / "compact.onnx").state_dict(), student.state_dict()
    for name, tensor in was.items():
        step = tensor.abs().max() / (126 if tensor.numel() >= 4_096 else 1e6)
        assert (back[name] - tensor).abs().max() <= 1.01 * step, name


@pytest.mark.parametrize("shape", [SMALL, ATTENTIVE])
def test_a_frame_sees_no_further_than_its_declared_context(shape: EncoderShape) -> None:
    student = random_student(shape)
    frames = 60
    samples = torch.randn(1, frames * FRAME_SAMPLES) * 0.1
    at, context = 30, shape.context_samples
    changed = samples.clone()
    changed[:, : at * FRAME_SAMPLES - context] = 0.5
    changed[:, (at + 1) * FRAME_SAMPLES + context :] = -0.5
    with torch.inference_mode():
        assert torch.equal(student(samples)[0, at], student(changed)[0, at])
        changed[:, at * FRAME_SAMPLES - context + FRAME_SAMPLES : at * FRAME_SAMPLES] = 0.5
        assert not torch.equal(student(samples)[0, at], student(changed)[0, at])


def test_isolated_cuts_keep_the_targets_of_their_context(work: Path) -> None:
    sampler = sampler_of(work, replace(DISTIL, isolated=1.0))
    batch = sampler.draw(np.random.default_rng(1))
    stored = torch.from_numpy(targets_of(work).astype(np.float32))
    valid = batch.target[batch.valid]
    assert len(valid) > 100
    # Every target is one of those of the full recordings.
    assert float((valid @ stored.T).max(1).values.min()) > 0.998
    assert not batch.valid.all()
    assert batch.waveform[~batch.valid.repeat_interleave(FRAME_SAMPLES, 1)].abs().max() < 0.01


def sounds(*frames: int, kinds: tuple[str, ...] = ()) -> Pack:
    """A pack of noise, told apart frame by frame."""
    lengths = np.array(frames, np.int64)
    samples = np.random.default_rng(0).integers(-20_000, 20_000, int(lengths.sum()) * FRAME_SAMPLES).astype(np.int16)
    entries = [Entry(f"{i}.wav", "", "", kind) for i, kind in enumerate(kinds or ("speech",) * len(frames))]
    return Pack(samples, np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths, entries)


def numbers(pack: Pack) -> np.ndarray:
    """Targets that say the number of their frame, as an angle."""
    angle = np.arange(pack.frames.sum()) * 0.01
    return np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float16)


def numbers_of(target: torch.Tensor) -> np.ndarray:
    cosine, sine = target.double().numpy().T
    return np.round(np.arctan2(sine, cosine) / 0.01).astype(int)


def test_running_speech_lies_under_its_targets_and_held_out_recordings_never() -> None:
    pack = sounds(60, 50, 40, 30, 45)
    settings = replace(DISTIL, isolated=0.0, changed_speed=0.0, held_out=0.2)
    sampler = Sampler(Sound(pack, numbers(pack), CPU), settings)
    batch = sampler.draw(np.random.default_rng(0), 6)
    assert batch.waveform.shape == (6, 100 * FRAME_SAMPLES)
    assert batch.valid[:, :95].all()
    of_sample = pack.samples.reshape(-1, FRAME_SAMPLES) / 32767.0
    recording = np.repeat(np.arange(5), pack.frames)
    for row in range(6):
        number = numbers_of(batch.target[row][batch.valid[row]])
        there = batch.waveform[row].reshape(-1, FRAME_SAMPLES)[batch.valid[row]].numpy()
        assert np.abs(there - of_sample[number]).max() < 0.01  # but for the white noise of the microphone
        assert len(sampler.held_out) == 1
        assert sampler.held_out[0] not in recording[number]


@pytest.mark.parametrize("speed", [0.87, 1.0, 1.15])
def test_speed_moves_sound_and_targets_together(speed: float) -> None:
    time = np.arange(200 * FRAME_SAMPLES) / SAMPLE_RATE
    tone = (10_000 * np.sin(2 * np.pi * 1_000 * time)).astype(np.int16)
    pack = Pack(tone, np.array([0]), np.array([200]), [Entry("a.wav", "", "", "speech")])
    plan, last = Plan(2, 60), int(50 / speed)
    plan.put(0, 5, 20, 50, speed)
    plan.put(1, 0, 150, last, speed)  # at the end of all sound there is nothing to read ahead
    batch = Sound(pack, numbers(pack), CPU).render(plan, np.random.default_rng(0))
    assert batch.waveform.shape == (2, 60 * FRAME_SAMPLES)
    heard = batch.waveform[0].numpy()
    cut = heard[5 * FRAME_SAMPLES : 55 * FRAME_SAMPLES]
    assert np.abs(np.fft.rfft(cut)).argmax() * SAMPLE_RATE / len(cut) == pytest.approx(1_000 * speed, abs=1)
    # The straight line between samples, followed without a step from frame to frame.
    at = np.arange(len(cut)) * speed + 20 * FRAME_SAMPLES
    assert np.abs(cut - np.interp(at, np.arange(len(tone)), tone) / 32767.0).max() < 0.01
    assert np.abs(heard[: 5 * FRAME_SAMPLES]).max() < 0.01
    assert batch.valid[0].tolist() == [False] * 5 + [True] * 50 + [False] * 5
    number = numbers_of(batch.target[0][batch.valid[0]])
    assert np.abs(number - (20 + (np.arange(50) + 0.5) * speed - 0.5)).max() <= 0.6
    assert batch.waveform[1].isfinite().all()
    assert batch.waveform[1, : (last - 1) * FRAME_SAMPLES].abs().max() > 0.2


def test_noise_is_that_of_the_pack_or_silence() -> None:
    pack = sounds(20, 3, kinds=("speech", "noise"))
    rng = np.random.default_rng(0)
    (noise,) = Noises(pack, CPU).draw(1, 5_000, rng).numpy()  # longer than there is: it goes round
    whole = pack.waveform(1) / 32767.0
    shift = int(np.abs(whole - noise[0]).argmin())
    assert noise == pytest.approx(np.resize(np.roll(whole, -shift), 5_000), abs=1e-6)
    assert (Noises(sounds(20), CPU).draw(2, 100, rng) == 0).all()


def test_copies_are_heard_with_the_targets_of_what_they_copy() -> None:
    pack = sounds(60, 50, 40)
    whole = np.concatenate([pack.samples, -pack.waveform(1)])  # a copy of the second, upside down
    pack = replace(pack, samples=whole, copies={1: 150})
    settings = replace(DISTIL, isolated=0.5, changed_speed=0.0, coded=1.0, held_out=0.0)
    sampler = Sampler(Sound(pack, numbers(pack), CPU), settings)
    if 1 in sampler.held_out:  # one is in any case
        sampler = Sampler(sampler.sound, replace(settings, seed=1))
    batch = sampler.draw(np.random.default_rng(0), 8)
    of_sample = pack.samples.reshape(-1, FRAME_SAMPLES) / 32767.0
    for row in range(8):
        number = numbers_of(batch.target[row][batch.valid[row]])
        assert ((number >= 60) & (number < 110)).all()
        there = batch.waveform[row].reshape(-1, FRAME_SAMPLES)[batch.valid[row]].numpy()
        assert np.abs(there + of_sample[number]).max() < 0.01


def test_the_loss_is_the_cosine_and_the_contrast_of_valid_frames() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.nn.functional.normalize(torch.randn(2, 6, 4, generator=generator), dim=-1)
    embedding = torch.nn.functional.normalize(torch.randn(2, 6, 4, generator=generator), dim=-1)
    valid = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    batch = Batch(torch.zeros(0), torch.zeros(0), target, valid)
    settings = replace(DISTIL, neighbour_frames=1, contrast_frames=100, contrast=0.3)
    loss, cosine = distil_loss(embedding, batch, settings, generator)
    assert float(cosine) == pytest.approx(float((embedding * target).sum(-1)[valid].mean()), abs=1e-6)
    place = torch.tensor([0, 1, 2, 3, 4, 5, 100, 101, 102])  # the rows are no neighbours
    contrast = frame_contrast(embedding[valid], target[valid], place, settings.temperature, 1)
    assert float(loss) == pytest.approx(1 - float(cosine) + 0.3 * float(contrast), rel=2e-2)  # half precision
    perfect, one = distil_loss(target, batch, settings, generator)
    assert float(one) == pytest.approx(1.0)
    assert perfect < loss


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
