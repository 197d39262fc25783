"""The best infix of each candidate by edit distance (rapidfuzz): which of them deserve a closer look, and where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from rapidfuzz import fuzz
from rapidfuzz.distance import Levenshtein

Tokens = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Alignment:
    """The infix [start, end) of a candidate's tokens that is nearest to the query, and its similarity in [0, 1]."""

    candidate: int
    start: int
    end: int
    similarity: float


def align(query: Tokens, candidates: Sequence[Tokens]) -> list[Alignment]:
    """One alignment per candidate, in the order given.

    The infix is as long as the query, or shorter at the ends of the segment; its similarity is one minus the
    insertions and deletions between the two over the sum of their lengths.
    """
    needle = query.tolist()
    found = []
    for number, candidate in enumerate(candidates):
        if len(candidate) == 0 or not needle:
            found.append(Alignment(number, 0, 0, 0.0))
            continue
        best = fuzz.partial_ratio_alignment(needle, candidate.tolist())
        # The shorter of the two slides along the longer: a segment shorter than the query is matched whole.
        start, end = (best.dest_start, best.dest_end) if best is not None else (0, 0)
        found.append(Alignment(number, start, end, best.score / 100.0 if best is not None else 0.0))
    return found


def edit_similarity(query: Tokens, stretch: Tokens) -> float:
    """One minus the edit distance of two token sequences over the length of the longer, in [0, 1]."""
    return float(Levenshtein.normalized_similarity(query.tolist(), stretch.tolist()))
