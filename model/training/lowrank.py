"""Low-rank updates of linear layers, and the tuned part of the teacher that is made of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.encoder import FRAME_SAMPLES
from model.training.features import Whitening
from model.training.teacher import BLOCKS, WINDOW_FRAMES, Teacher
from model.whisper import TAIL_SAMPLES

LAYERS = ("attn.query", "attn.key", "attn.value", "attn.out", "mlp.0", "mlp.2")


class LowRankLinear(nn.Module):
    """A frozen linear layer plus b @ a (Hu et al. 2021): `a` [rank, in], `b` [out, rank], at first zero."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.base.weight + self.b @ self.a, self.base.bias)


class TunedTeacher(nn.Module):
    """The teacher with updates of its blocks and a projection to unit embeddings.

    Unlike the published encoder it looks at a stretch alone, not at a window of 30 s.
    """

    mean: Tensor
    whitening: Tensor

    def __init__(self, teacher: Teacher, whitening: Whitening, rank: int) -> None:
        super().__init__()
        self.teacher = teacher.requires_grad_(False)
        for block in teacher.blocks:
            for name in LAYERS:
                owner, last = block.get_submodule(name.split(".")[0]), name.split(".")[1]
                setattr(owner, last, LowRankLinear(block.get_submodule(name), rank))  # type: ignore[arg-type]
        teacher.ln_post.requires_grad_(True)
        self.register_buffer("mean", torch.from_numpy(whitening.mean))
        self.register_buffer("whitening", torch.from_numpy(whitening.matrix.T.copy()))
        self.mix = nn.Parameter(torch.eye(whitening.matrix.shape[1]))

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that are learned, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def embed(self, waveform: Tensor, frames: Tensor | None = None, position: int = 0) -> Tensor:
        """Unit embeddings of stretches of 30 s at most: float32 [batch, n * 640] to [batch, n, dim].

        `frames` int64 [batch] says how many of each are sound, the rest is padding; without it all are. `position` is
        the encoder's row, of 1,500, at which they begin.
        """
        count = waveform.shape[1] // FRAME_SAMPLES
        mask = None
        if frames is not None:
            there = torch.arange(count, device=waveform.device)[None] < frames[:, None]
            waveform = waveform * there.repeat_interleave(FRAME_SAMPLES, 1)
            mask = there.repeat_interleave(2, 1)[:, None, None].expand(-1, 1, 2 * count, -1)
        mel = self.teacher.log_mel(F.pad(waveform, (0, TAIL_SAMPLES)))
        pooled = self.teacher.encode(mel, 2 * count, min(position, 2 * (WINDOW_FRAMES - count)), mask).float()
        with torch.autocast(pooled.device.type, enabled=False):
            return F.normalize((pooled - self.mean) @ self.whitening.T @ self.mix.T, dim=-1)

    def tensors(self) -> dict[str, Tensor]:
        """The tuned part under the names of its file, see `model.accurate`."""
        out = {"projection.mean": self.mean, "projection.weight": self.mix.detach() @ self.whitening}
        out |= {f"ln_post.{name}": p.detach() for name, p in self.teacher.ln_post.named_parameters()}
        for number in range(BLOCKS):
            for name in LAYERS:
                layer = self.teacher.blocks[number].get_submodule(name)
                assert isinstance(layer, LowRankLinear)
                out[f"lora.{number}.{name}.a"], out[f"lora.{number}.{name}.b"] = layer.a.detach(), layer.b.detach()
        return {name: tensor.contiguous().cpu() for name, tensor in out.items()}


def save_tuned(
    tuned: TunedTeacher, path: Path, metadata: dict[str, str], share: float = 1.0,
    before: Mapping[str, Tensor] | None = None,
) -> None:  # fmt: skip
    """The tuned part alone, float16 but for the projection, with so much of what its updates have become since they
    were as in `before`, or nothing (WiSE-FT, Wortsman 2022)."""  # fmt: skip
    tensors = tuned.tensors()
    for name in (name for name in tensors if name.endswith(".b")):
        first = torch.zeros_like(tensors[name]) if before is None else before[name]
        tensors[name] = first + share * (tensors[name] - first)
    tensors = {n: t if n.startswith("projection") else t.half() for n, t in tensors.items()}
    save_file(tensors, path, metadata)


def projection_of(path: Path) -> Whitening:
    """The projection of a tuned part, from pooled features to what is then made unit."""
    tensors = load_file(path)
    return Whitening(
        tensors["projection.mean"].float().numpy(),
        np.ascontiguousarray(tensors["projection.weight"].float().numpy().T),
    )


def load_tuned(teacher: Teacher, path: Path) -> TunedTeacher:
    """The teacher with a tuned part as `save_tuned` left it."""
    tensors: Mapping[str, Tensor] = {name: tensor.float() for name, tensor in load_file(path).items()}
    rank = len(tensors[f"lora.0.{LAYERS[0]}.a"])
    tuned = TunedTeacher(teacher, projection_of(path), rank)
    with torch.no_grad():
        for name, parameter in teacher.ln_post.named_parameters():
            parameter.copy_(tensors[f"ln_post.{name}"])
        for number in range(BLOCKS):
            for name in LAYERS:
                layer = teacher.blocks[number].get_submodule(name)
                assert isinstance(layer, LowRankLinear)
                layer.a.copy_(tensors[f"lora.{number}.{name}.a"])
                layer.b.copy_(tensors[f"lora.{number}.{name}.b"])
    return tuned.eval()
