"""What words should teach: contrast along paths, balanced codes, CTC without blank, framewise token prediction."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def frame_contrast(
    embedding: Tensor, target: Tensor, place: Tensor, temperature: float, neighbour_frames: int
) -> Tensor:
    """InfoNCE of frames against targets (van den Oord et al. 2018): unit float32 [n, dim] both, `place` int64 [n].

    Frames whose places differ by at most `neighbour_frames` are left out of each other's negatives.
    """
    logits = embedding @ target.T / temperature
    distance = (place[:, None] - place[None, :]).abs()
    logits = logits.masked_fill((distance <= neighbour_frames) & (distance > 0), -torch.inf)
    return F.cross_entropy(logits, torch.arange(len(embedding), device=embedding.device))


def path_contrast(embedding: Tensor, word: Tensor, anchor: Tensor, positive: Tensor, temperature: float) -> Tensor:
    """InfoNCE of frames of one word against its other occurrences along DTW paths (BEST-STD, Singh et al. 2024).

    `embedding` float32 [n, dim] unit; `word` int64 [n], which word each frame belongs to, or -1 for a frame that is a
    negative to all; `anchor` and `positive` int64 [pairs] number the aligned frames. The negatives of an anchor are
    the frames of all other words of the batch. Several positives of one anchor are terms of their own.
    """
    similarity = (embedding[anchor] @ embedding.T).float() / temperature
    other = word[anchor][:, None] != word[None, :]
    negative = similarity.masked_fill(~other, -torch.inf).logsumexp(1)
    positive_logit = similarity.gather(1, positive[:, None])[:, 0]
    return (torch.logaddexp(positive_logit, negative) - positive_logit).mean()


@torch.no_grad()
def sinkhorn(scores: Tensor, temperature: float = 0.05, iterations: int = 3) -> Tensor:
    """Soft codes of frames that use all codes alike: float32 [n, K] cosines to [n, K], rows summing to 1.

    Sinkhorn and Knopp 1967, as in SwAV (Caron et al. 2020) and BEST-STD 2.0: columns are scaled to n / K and rows to
    1 in turn, rows last.
    """
    log = scores.float() / temperature
    n, size = log.shape
    column = torch.log(torch.tensor(n / size))
    for _ in range(iterations):
        log = log - log.logsumexp(0, keepdim=True) + column
        log = log - log.logsumexp(1, keepdim=True)
    return log.exp()


def swapped_prediction(scores: Tensor, codes: Tensor, anchor: Tensor, positive: Tensor, temperature: float) -> Tensor:
    """Each frame predicts the balanced soft code of the frame aligned to it (SwAV): `scores`, `codes` [n, K]."""
    log_probability = F.log_softmax(scores[anchor].float() / temperature, 1)
    return -(codes[positive] * log_probability).sum(1).mean()


def collapse(tokens: Tensor) -> Tensor:
    """Run-length collapse: int64 [n] to int64 [runs]."""
    runs: Tensor = torch.unique_consecutive(tokens)
    return runs


def blank_free_ctc(
    log_probability: Tensor, frames: Tensor, target: Tensor, lengths: Tensor, optional: int | None = None
) -> Tensor:
    """Negative log likelihood of token sequences under CTC without a blank (wav2tok, Banerjee and Arora 2022).

    Every frame emits a token; a path is right if its run-length collapse is the target. float32 [batch, time, K],
    `frames` int64 [batch], `target` int64 [batch, longest] without equal neighbours, `lengths` int64 [batch], to
    float32 [batch], infinite where the target needs more frames than there are. The token `optional` (a pause) may be
    left out wherever the target has it; no two of it are neighbours.
    """
    batch, time, _ = log_probability.shape
    longest = target.shape[1]
    emit = log_probability.gather(2, target.clamp(min=0)[:, None].expand(batch, time, longest))
    # A finite stand-in for minus infinity keeps gradients free of NaN.
    nothing = torch.full((batch, 1), -1e30, device=emit.device)
    absent = torch.full((batch, longest), -1e30, device=emit.device)
    may_go = target == optional if optional is not None else torch.zeros_like(target, dtype=torch.bool)
    leaves_out = torch.cat([torch.zeros_like(may_go[:, :1]), may_go[:, :-1]], 1)  # the one before it may be left out
    first = torch.arange(longest, device=emit.device)[None] == 0
    second = (torch.arange(longest, device=emit.device)[None] == 1) & leaves_out
    alpha = torch.where(first | second, emit[:, 0], absent)
    ends = [alpha]
    for t in range(1, time):
        before = torch.cat([nothing, alpha[:, :-1]], 1)
        came = torch.logaddexp(alpha, before)
        if optional is not None:
            skipped = torch.cat([nothing, before[:, :-1]], 1)
            came = torch.logaddexp(came, torch.where(leaves_out, skipped, absent))
        alpha = came + emit[:, t]
        ends.append(alpha)
    last = torch.stack(ends, 1)[torch.arange(batch, device=emit.device), frames - 1]
    at_end = (lengths - 1)[:, None]
    likelihood = last.gather(1, at_end)[:, 0]
    inside = torch.arange(longest, device=emit.device)[None] < lengths[:, None]
    if optional is not None and longest > 1:
        may_end = may_go.gather(1, at_end)[:, 0] & (lengths > 1)
        earlier = last.gather(1, (at_end - 1).clamp(min=0))[:, 0]
        likelihood = torch.where(may_end, torch.logaddexp(likelihood, earlier), likelihood)
    needed = lengths - (may_go & inside).sum(1)
    return torch.where(needed.clamp(min=1) <= frames, -likelihood, torch.full_like(likelihood, torch.inf))


def best_aligned(similarity: Tensor, anchor: Tensor, positive: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """For each anchor frame, of the frames aligned to it the one of highest cosine: (anchors, positives), int64 each.

    `similarity` float32 [pairs] belongs to the pairs (`anchor`, `positive`); of equals the first pair counts.
    """
    best = torch.full((frames,), -torch.inf, device=similarity.device)
    best = best.scatter_reduce(0, anchor, similarity, "amax")
    chosen = (similarity == best[anchor]).nonzero()[:, 0]
    first = torch.full((frames,), len(anchor), device=anchor.device, dtype=torch.int64)
    first = first.scatter_reduce(0, anchor[chosen], chosen, "amin")
    kept = first[first < len(anchor)]
    return anchor[kept], positive[kept]


def framewise(scores: Tensor, tokens: Tensor, anchor: Tensor, positive: Tensor, temperature: float) -> Tensor:
    """Cross entropy of each anchor frame on the token of its aligned frame (wav2tok 2.0): scores [n, K] cosines."""
    return F.cross_entropy(scores[anchor].float() / temperature, tokens[positive])


def adaptive_weight(contrast: Tensor, other: Tensor, share: float = 0.5) -> Tensor:
    """share * |contrast| / |other| without gradient, so that `other` counts as much; 0 where it is not finite."""
    weight = share * contrast.detach().abs() / other.detach().abs().clamp(min=1e-6)
    return torch.where(torch.isfinite(other.detach()), weight, torch.zeros_like(weight))
