"""The teacher: the encoder of OpenAI Whisper base, and its features of packed recordings.

Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision". The weights are MIT licensed
and come from their publisher or from a given file; nothing of them is part of this project.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from model.audio import SAMPLE_RATE
from model.encoder import FRAME_SAMPLES
from model.frontend import fourier_basis, mel_bank
from model.training.data import Pack

PUBLISHED_AS = "openai/whisper-base"
SHA256 = "24e01a450caf34d3d35e074c387404fab3e9d717b2fb848d6a2d7ae032694aa1"  # of the float16 tensors, see `fingerprint`
MELS, WIDTH, HEADS, BLOCKS = 80, 512, 8, 6
FFT, HOP = 400, 160
WINDOW_S = 30  # its positions are absolute, and it was trained on full windows only
WINDOW_FRAMES = WINDOW_S * SAMPLE_RATE // FRAME_SAMPLES  # 750 pooled frames
GAP_FRAMES = 10  # 0.4 s of silence between two recordings of a window
OVERLAP_FRAMES = 50  # 2 s, between the windows of one recording that is longer than a window
FEATURES_FILE, JOURNAL_FILE, WHITENING_FILE = "teacher.f16", "teacher.json", "whitening.npz"
BATCH = 4


class TeacherError(Exception):
    """The teacher's weights cannot be had or are not what they should be."""

    code = "teacher_unavailable"


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH, bias=False)
        self.value = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, _ = x.shape

        def heads(y: Tensor) -> Tensor:
            return y.view(batch, time, HEADS, WIDTH // HEADS).transpose(1, 2)

        mixed = F.scaled_dot_product_attention(heads(self.query(x)), heads(self.key(x)), heads(self.value(x)))
        return self.out(mixed.transpose(1, 2).reshape(batch, time, WIDTH))  # type: ignore[no-any-return]


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = _Attention()
        self.attn_ln = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        self.mlp_ln = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.attn_ln(x))
        return x + self.mlp(self.mlp_ln(x))  # type: ignore[no-any-return]


class Teacher(nn.Module):
    """Waveforms of 30 s in, pooled features out: float32 [batch, 480000] to [batch, 750, 512], 25 a second."""

    basis: Tensor
    bank: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(MELS, WIDTH, 3, padding=1)
        self.conv2 = nn.Conv1d(WIDTH, WIDTH, 3, stride=2, padding=1)
        self.positional_embedding = nn.Parameter(torch.empty(WINDOW_FRAMES * 2, WIDTH))
        self.blocks = nn.ModuleList(_Block() for _ in range(BLOCKS))
        self.ln_post = nn.LayerNorm(WIDTH)
        self.register_buffer("basis", torch.from_numpy(fourier_basis(FFT, FFT))[:, None], persistent=False)
        self.register_buffer("bank", torch.from_numpy(mel_bank(MELS, FFT, 0.0, SAMPLE_RATE / 2)), persistent=False)

    def log_mel(self, waveform: Tensor) -> Tensor:
        """Whisper's own front end: float32 [batch, 480000] to [batch, 80, 3000]."""
        padded = F.pad(waveform[:, None], (FFT // 2, FFT // 2), mode="reflect")
        spectrum = F.conv1d(padded, self.basis, stride=HOP)[..., :-1]
        real, imaginary = spectrum.chunk(2, dim=1)
        mel = self.bank @ (real.square() + imaginary.square())
        log = mel.clamp(min=1e-10).log10()
        floor = log.amax(dim=(1, 2), keepdim=True) - 8.0
        return torch.maximum(log, floor).add(4.0).div(4.0)

    def forward(self, waveform: Tensor) -> Tensor:
        with torch.autocast(waveform.device.type, enabled=False):
            mel = self.log_mel(waveform.float())
        x = F.gelu(self.conv1(mel))
        x = F.gelu(self.conv2(x)).transpose(1, 2) + self.positional_embedding
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.ln_post(x.float())
        return out.view(len(out), WINDOW_FRAMES, 2, WIDTH).mean(2)


_PUBLISHER_NAMES = {
    "self_attn.q_proj": "attn.query", "self_attn.k_proj": "attn.key", "self_attn.v_proj": "attn.value",
    "self_attn.out_proj": "attn.out", "self_attn_layer_norm": "attn_ln", "fc1": "mlp.0", "fc2": "mlp.2",
    "final_layer_norm": "mlp_ln",
}  # fmt: skip


def _own_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under this module's names, from this module's, openai-whisper's or the hub's."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if ".decoder." in name or name.startswith("decoder.") or name == "proj_out.weight":
            continue
        name = name.removeprefix("model.").removeprefix("encoder.")
        name = name.replace("embed_positions.weight", "positional_embedding")
        if name.startswith("layers."):
            _, number, rest = name.split(".", 2)
            part, kind = rest.rsplit(".", 1)
            name = f"blocks.{number}.{_PUBLISHER_NAMES.get(part, part)}.{kind}"
        elif name.startswith("layer_norm."):
            name = name.replace("layer_norm", "ln_post")
        renamed[name] = tensor
    return renamed


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names and float16 values: the same for every file that holds the same encoder."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].to(torch.float16).contiguous().numpy().tobytes())
    return digest.hexdigest()


def load_teacher(source: str) -> Teacher:
    """The teacher from a safetensors file, or from its publisher by name (`openai/whisper-base`).

    Raises TeacherError where the file is missing, has other tensors, or other values than were published.
    """
    path = Path(source)
    if not path.is_file():
        if source != PUBLISHED_AS:
            raise TeacherError(f"no such file, and the only teacher known by name is {PUBLISHED_AS}: {source}")
        from huggingface_hub import hf_hub_download

        path = Path(hf_hub_download(source, "model.safetensors"))
    tensors = _own_names(load_file(path))
    found = fingerprint(tensors)
    if found != SHA256:
        raise TeacherError(f"not the published encoder: fingerprint {found[:12]}, not {SHA256[:12]}")
    teacher = Teacher()
    teacher.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=True)
    return teacher.eval().requires_grad_(False)


@dataclass(frozen=True)
class Placement:
    """A stretch of a recording inside a window, all in frames; only [keep, keep + frames) of it is stored."""

    window: int
    at: int
    recording: int
    first: int
    frames: int


def place(frames: npt.NDArray[np.int64], order: npt.NDArray[np.int64]) -> list[Placement]:
    """Pack recordings into windows, in `order`; one longer than a window is cut into overlapping stretches."""
    placements: list[Placement] = []
    window, at = 0, 0
    for recording in order:
        first, left = 0, int(frames[recording])
        while left > 0:
            size = min(left, WINDOW_FRAMES)
            if at + size > WINDOW_FRAMES and at > 0:
                window, at = window + 1, 0
            placements.append(Placement(window, at, int(recording), first, size))
            at += size + GAP_FRAMES
            if left == size:
                break
            first += size - OVERLAP_FRAMES
            left -= size - OVERLAP_FRAMES
    return placements


def store_features(
    load: Callable[[], Teacher], pack: Pack, work: Path, device: torch.device, seed: int = 0
) -> npt.NDArray[np.float16]:
    """Pooled features of every recording, float16 [frames of the pack, 512], in `work`; resumes where it stopped."""
    speech = np.random.default_rng(seed).permutation(len(pack.entries))
    placements = place(pack.frames, speech)
    windows = placements[-1].window + 1
    of_window: list[list[Placement]] = [[] for _ in range(windows)]
    for placement in placements:
        of_window[placement.window].append(placement)
    journal = work / JOURNAL_FILE
    done = json.loads(journal.read_text(encoding="utf-8"))["windows"] if journal.exists() else 0
    total = int(pack.frames.sum())
    features = np.memmap(work / FEATURES_FILE, np.float16, "r+" if done else "w+", shape=(total, WIDTH))
    if done >= windows:
        return features
    teacher = load().to(device)  # not before it is needed: a resumed run may have no teacher at hand
    for first in tqdm(
        range(done, windows, BATCH), "teacher", math.ceil(windows / BATCH), initial=done // BATCH, unit="batch"
    ):
        batch = of_window[first : first + BATCH]
        waveform = np.zeros((len(batch), WINDOW_S * SAMPLE_RATE), np.float32)
        for row, stretches in enumerate(batch):
            for p in stretches:
                source = pack.waveform(p.recording)[p.first * FRAME_SAMPLES : (p.first + p.frames) * FRAME_SAMPLES]
                waveform[row, p.at * FRAME_SAMPLES : p.at * FRAME_SAMPLES + len(source)] = source / 32767.0
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
            out = teacher(torch.from_numpy(waveform).to(device)).half().cpu().numpy()
        for row, stretches in enumerate(batch):
            for p in stretches:
                skip = OVERLAP_FRAMES // 2 if p.first else 0  # each stretch keeps the inner half of an overlap
                to = int(pack.start[p.recording]) + p.first
                features[to + skip : to + p.frames] = out[row, p.at + skip : p.at + p.frames]
        if first // BATCH % 50 == 49 or first + BATCH >= windows:
            features.flush()
            journal.write_text(json.dumps({"windows": min(first + BATCH, windows)}), encoding="utf-8")
    return features


@dataclass(frozen=True)
class Whitening:
    """x -> (x - mean) @ matrix: float32 mean [512], matrix [512, dim]."""

    mean: npt.NDArray[np.float32]
    matrix: npt.NDArray[np.float32]


def fit_whitening(features: npt.NDArray[np.float16], dim: int, sample: int = 200_000, seed: int = 0) -> Whitening:
    """PCA whitening of a sample of frames to `dim`; small eigenvalues are lifted by a thousandth of the largest."""
    at = np.sort(np.random.default_rng(seed).choice(len(features), min(sample, len(features)), replace=False))
    x = features[at].astype(np.float64)
    mean = x.mean(0)
    values, vectors = np.linalg.eigh(np.cov(x - mean, rowvar=False))
    order = np.argsort(values)[::-1][:dim]
    scale = 1.0 / np.sqrt(values[order] + 1e-3 * values.max())
    return Whitening(mean.astype(np.float32), (vectors[:, order] * scale).astype(np.float32))


def save_whitening(whitening: Whitening, work: Path) -> None:
    """Beside the features."""
    np.savez(work / WHITENING_FILE, mean=whitening.mean, matrix=whitening.matrix)


def load_whitening(work: Path) -> Whitening:
    """As `save_whitening` left it."""
    arrays = np.load(work / WHITENING_FILE)
    return Whitening(arrays["mean"], arrays["matrix"])
