"""What the decoder is taught: the next token, where it begins, when to stop, and which sequence belongs to a sound."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def token_loss(logits: Tensor, entered: Tensor, wanted: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of the next token: [batch, steps, K + 1], the entries before it, and int64 targets (-100: none).

    An entry's own token is out of the question, as in decoding, unless it is the target (after a corrupted prefix).
    """
    own = torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, entered[..., None], (entered != wanted)[..., None])
    log_probability = F.log_softmax(logits.masked_fill(own, -torch.inf), -1)
    some = wanted >= 0
    hit = -log_probability.gather(-1, wanted.clamp(min=0)[..., None])[..., 0][some]
    everywhere = -log_probability.masked_fill(own, 0.0).mean(-1)[some]
    return ((1.0 - smoothing) * hit + smoothing * everywhere).mean()


def pointer_loss(pointer: Tensor, entered_at: Tensor, pointed: Tensor) -> Tensor:
    """Cross-entropy of the frame at which the next token begins, among those after the last one's.

    `pointer` [batch, steps, frames], `entered_at` int64 [batch, steps], `pointed` int64 with -100 for none. Targets at
    or before the last one's frame (after a shifted prefix) do not count. Zero where there is none at all.
    """
    frame = torch.arange(pointer.shape[-1], device=pointer.device)
    scores = pointer.masked_fill(frame <= entered_at[..., None], -torch.inf)
    target = torch.where(pointed > entered_at, pointed, torch.full_like(pointed, -100))
    if not (target >= 0).any():
        return pointer.new_zeros(())
    some = target >= 0
    return F.cross_entropy(scores[some], target[some])


def log_likelihood(logits: Tensor, wanted: Tensor) -> Tensor:
    """Mean log probability of each sequence's tokens and EOS: [batch, steps, K + 1] and int64 targets, to [batch]."""
    counts = wanted >= 0
    each = F.log_softmax(logits, -1).gather(-1, wanted.clamp(min=0)[..., None])[..., 0]
    return (each * counts).sum(1) / counts.sum(1).clamp(min=1)


def likelihood_contrast(scores: Tensor, temperature: float) -> Tensor:
    """InfoNCE: `scores` [n, n] of sequence j under condition i, length-normalised log likelihoods.

    A sequence must be likelier under its own condition than the others' sequences are (arXiv 2605.06582).
    """
    return F.cross_entropy(scores / temperature, torch.arange(len(scores), device=scores.device))


def expected_length(logits: Tensor, wanted: Tensor) -> Tensor:
    """Tokens that are written before EOS, expected along the paired prefix: [batch].

    The sum over steps of the probability that EOS has not come by then; EOS is never first.
    """
    stop = F.softmax(logits, -1)[..., -1]
    stop = torch.cat([torch.zeros_like(stop[:, :1]), stop[:, 1:]], 1)
    alive = torch.cumprod(1.0 - stop, 1)
    return (alive * (wanted >= 0)).sum(1)


def length_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """How far the expected length is from that of the target, relative to it: mean over the batch.

    Beyond the target's EOS the cross-entropy already punishes going on; one step past it is counted here.
    """
    length = (wanted >= 0).sum(1) - (wanted == logits.shape[-1] - 1).any(1).long()
    return ((expected_length(logits, wanted) - length).abs() / length.clamp(min=1)).mean()
