"""The teacher: the encoder of OpenAI Whisper base in torch (its weights and their source: `model.whisper`)."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import whisper
from model.audio import SAMPLE_RATE
from model.frontend import fourier_basis, mel_bank
from model.training.student import exact_convolutions
from model.whisper import BLOCKS, FFT, HEADS, HOP, MELS, PUBLISHED_AS, WIDTH, WINDOW_FRAMES, WINDOW_S

__all__ = [
    "BLOCKS", "FFT", "HEADS", "HOP", "MELS", "PUBLISHED_AS", "WIDTH", "WINDOW_FRAMES", "WINDOW_S",
    "Teacher", "TeacherBlock", "TeacherError", "load_teacher",
]  # fmt: skip


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

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        batch, time, _ = x.shape

        def heads(y: Tensor) -> Tensor:
            return y.view(batch, time, HEADS, WIDTH // HEADS).transpose(1, 2)

        mixed = F.scaled_dot_product_attention(heads(self.query(x)), heads(self.key(x)), heads(self.value(x)), mask)
        return self.out(mixed.transpose(1, 2).reshape(batch, time, WIDTH))  # type: ignore[no-any-return]


class TeacherBlock(nn.Module):
    """One of the encoder's blocks: [batch, rows, 512] to the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = _Attention()
        self.attn_ln = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        self.mlp_ln = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.attn(self.attn_ln(x), mask)
        return x + self.mlp(self.mlp_ln(x))  # type: ignore[no-any-return]


class Teacher(nn.Module):
    """The published encoder.

    Called with windows of 30 s it gives pooled features: float32 [batch, 480000] to [batch, 750, 512], 25 a second.
    """

    basis: Tensor
    bank: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(MELS, WIDTH, 3, padding=1)
        self.conv2 = nn.Conv1d(WIDTH, WIDTH, 3, stride=2, padding=1)
        self.positional_embedding = nn.Parameter(torch.empty(WINDOW_FRAMES * 2, WIDTH))
        self.blocks = nn.ModuleList(TeacherBlock() for _ in range(BLOCKS))
        self.ln_post = nn.LayerNorm(WIDTH)
        self.register_buffer("basis", torch.from_numpy(fourier_basis(FFT, FFT))[:, None], persistent=False)
        self.register_buffer("bank", torch.from_numpy(mel_bank(MELS, FFT, 0.0, SAMPLE_RATE / 2)), persistent=False)

    def log_mel(self, waveform: Tensor) -> Tensor:
        """Whisper's own front end: float32 [batch, samples] to [batch, 80, samples // 160]."""
        with torch.autocast(waveform.device.type, enabled=False), exact_convolutions():
            padded = F.pad(waveform.float()[:, None], (FFT // 2, FFT // 2), mode="reflect")
            spectrum = F.conv1d(padded, self.basis, stride=HOP)[..., :-1]
            real, imaginary = spectrum.chunk(2, dim=1)
            mel = self.bank @ (real.square() + imaginary.square())
            log = mel.clamp(min=1e-10).log10()
            floor = log.amax(dim=(1, 2), keepdim=True) - 8.0
            return torch.maximum(log, floor).add(4.0).div(4.0)

    def stem(self, mel: Tensor, rows: int, position: int = 0) -> Tensor:
        """What the first block is given: log-mel [batch, 80, 2 * rows or more] to [batch, rows, 512], 50 a second.

        `position` is where the first row stands among those of a window.
        """
        x = F.gelu(self.conv2(F.gelu(self.conv1(mel)))).transpose(1, 2)[:, :rows]
        return x + self.positional_embedding[position : position + rows]

    def encode(self, mel: Tensor, rows: int, position: int = 0, mask: Tensor | None = None) -> Tensor:
        """All blocks, the last norm and the mean of two rows: to float32 [batch, rows // 2, 512], see `stem`.

        `mask` bool [batch, 1, rows, rows] is true where a row may look at another; without one all may.
        """
        x = self.stem(mel, rows, position)
        for block in self.blocks:
            x = block(x, mask)
        out: Tensor = self.ln_post(x.float())
        return out.view(len(out), -1, 2, WIDTH).mean(2)

    def forward(self, waveform: Tensor) -> Tensor:
        return self.encode(self.log_mel(waveform), 2 * WINDOW_FRAMES)


_own_names = whisper.own_names


def load_teacher(source: str) -> Teacher:
    """The teacher from a safetensors file, or from its publisher by name (`openai/whisper-base`).

    Raises TeacherError where the file is missing, has other tensors, or other values than were published.
    """
    path = Path(source)
    if not path.is_file() and source != PUBLISHED_AS:
        raise TeacherError(f"no such file, and the only teacher known by name is {PUBLISHED_AS}: {source}")
    try:
        tensors = whisper.read_encoder(path if path.is_file() else whisper.download())
    except whisper.EncoderError as error:
        raise TeacherError(str(error)) from error
    teacher = Teacher()
    teacher.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in tensors.items()}, strict=True)
    return teacher.eval().requires_grad_(False)
