"""Corrupted prefixes: what the decoder wrote so far is not to be trusted, so that it listens (arXiv 2605.06582)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Corruption:
    """Probabilities for each token of the prefix."""

    replace: float = 0.08  # by any other
    drop: float = 0.06  # hidden behind BOS
    repeat: float = 0.06  # shown as the one before it
    shift: float = 0.1  # its frame is one off


def corrupt(
    tokens: Tensor, starts: Tensor, size: int, frames: Tensor, spec: Corruption, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Prefixes int64 [batch, steps] with some of their entries changed; the first, BOS, stays.

    `size` is K, whose number is BOS; `frames` int64 [batch] bounds the starts. What is to be predicted is as before.
    """
    draw = torch.rand(tokens.shape, generator=generator, device=tokens.device)
    other = torch.randint(size, tokens.shape, generator=generator, device=tokens.device)
    before = torch.roll(tokens, 1, 1)
    bounds = torch.tensor([spec.replace, spec.drop, spec.repeat], device=tokens.device).cumsum(0)
    out = torch.where(draw < bounds[2], before, tokens)
    out = torch.where(draw < bounds[1], torch.full_like(tokens, size), out)
    out = torch.where(draw < bounds[0], other, out)
    step = 2 * torch.randint(2, starts.shape, generator=generator, device=starts.device) - 1
    moved = torch.rand(starts.shape, generator=generator, device=starts.device) < spec.shift
    at = torch.where(moved, starts + step, starts).clamp(min=0)
    at = torch.minimum(at, (frames - 1).clamp(min=0)[:, None])
    out[:, 0], at[:, 0] = tokens[:, 0], starts[:, 0]
    return out, at
