"""Figures of one ranked answer: average precision, reciprocal rank, precision at a rank."""

from __future__ import annotations

from service.evaluation.judging import Judged


def average_precision(judged: Judged) -> float:
    """Mean, over ALL relevant items, of the precision at each one found; those not found count zero."""
    right, total = 0, 0.0
    for rank, (_, correct) in enumerate(judged.hits, 1):
        if correct:
            right += 1
            total += right / rank
    return total / judged.relevant if judged.relevant else 0.0


def reciprocal_rank(judged: Judged) -> float:
    """One over the rank of the first right hit; zero where there is none."""
    return next((1.0 / rank for rank, (_, correct) in enumerate(judged.hits, 1) if correct), 0.0)


def precision_at(judged: Judged, rank: int) -> float:
    """Share of right hits among the first `rank`; where there are fewer hits, the missing ones are not right."""
    return sum(correct for _, correct in judged.hits[:rank]) / rank
