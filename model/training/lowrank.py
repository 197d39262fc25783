"""Low-rank updates of linear layers, and the tuned part of the teacher that is made of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.training.features import Whitening
from model.training.teacher import BLOCKS, LOWER_BLOCKS, WIDTH, Teacher

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
    """The teacher with updates of its last blocks and a projection to unit embeddings.

    `embed` takes what `Teacher.lower` gives, of one stretch a row: [batch, 2 n, 512] to [batch, n, dim]. Unlike the
    published encoder the upper blocks look at the stretch alone, not at a window of 30 s.
    """

    mean: Tensor
    whitening: Tensor

    def __init__(self, teacher: Teacher, whitening: Whitening, rank: int) -> None:
        super().__init__()
        self.teacher = teacher.requires_grad_(False)
        for block in teacher.blocks[LOWER_BLOCKS:]:
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

    def embed(self, lower: Tensor, rows: Tensor | None = None) -> Tensor:
        """Unit embeddings; `rows` int64 [batch] says how many rows of each are sound, the rest is padding."""
        mask = None
        if rows is not None:
            mask = (torch.arange(lower.shape[1], device=lower.device)[None] < rows[:, None])[:, None, None]
            mask = mask.expand(-1, 1, lower.shape[1], -1)
        pooled = self.teacher.upper(lower, mask).float()
        with torch.autocast(pooled.device.type, enabled=False):
            return F.normalize((pooled - self.mean) @ self.whitening.T @ self.mix.T, dim=-1)

    def tensors(self) -> dict[str, Tensor]:
        """The tuned part under the names of its file, see `model.accurate`."""
        out = {"projection.mean": self.mean, "projection.weight": self.mix.detach() @ self.whitening}
        out |= {f"ln_post.{name}": p.detach() for name, p in self.teacher.ln_post.named_parameters()}
        for number in range(LOWER_BLOCKS, BLOCKS):
            for name in LAYERS:
                layer = self.teacher.blocks[number].get_submodule(name)
                assert isinstance(layer, LowRankLinear)
                out[f"lora.{number}.{name}.a"], out[f"lora.{number}.{name}.b"] = layer.a.detach(), layer.b.detach()
        return {name: tensor.contiguous().cpu() for name, tensor in out.items()}


def save_tuned(tuned: TunedTeacher, path: Path, metadata: dict[str, str]) -> None:
    """The tuned part alone, float16 but for the projection."""
    tensors = {n: t if n.startswith("projection") else t.half() for n, t in tuned.tensors().items()}
    save_file(tensors, path, metadata)


def load_tuned(teacher: Teacher, path: Path) -> TunedTeacher:
    """The teacher with a tuned part as `save_tuned` left it."""
    tensors: Mapping[str, Tensor] = {name: tensor.float() for name, tensor in load_file(path).items()}
    rank = len(tensors[f"lora.{LOWER_BLOCKS}.{LAYERS[0]}.a"])
    projection = tensors["projection.weight"]
    whitening = Whitening(tensors["projection.mean"].numpy(), np.ascontiguousarray(projection.numpy().T))
    tuned = TunedTeacher(teacher, whitening, rank)
    with torch.no_grad():
        for name, parameter in teacher.ln_post.named_parameters():
            parameter.copy_(tensors[f"ln_post.{name}"])
        for number in range(LOWER_BLOCKS, BLOCKS):
            for name in LAYERS:
                layer = teacher.blocks[number].get_submodule(name)
                assert isinstance(layer, LowRankLinear)
                layer.a.copy_(tensors[f"lora.{number}.{name}.a"])
                layer.b.copy_(tensors[f"lora.{number}.{name}.b"])
    assert projection.shape[1] == WIDTH
    return tuned.eval()
