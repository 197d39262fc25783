"""The best infix of each candidate by edit distance (rapidfuzz)."""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
import numpy.typing as npt
from rapidfuzz import fuzz, process
from rapidfuzz.distance import Levenshtein

Tokens = npt.NDArray[np.uint16]
Int64 = npt.NDArray[np.int64]


def align(query: Tokens, candidates: Sequence[str]) -> npt.NDArray[np.float32]:
    """How near the nearest infix of each candidate's tokens (`as_text`) is to the query: float32 [candidates].

    The infix is as long as the query, or shorter at the ends of the candidate; its similarity in [0, 1] is one minus
    the insertions and deletions between the two over the sum of their lengths.
    """
    if not candidates or not len(query):
        return np.zeros(len(candidates), np.float32)
    scores = process.cdist([as_text(query)], candidates, scorer=fuzz.partial_ratio, dtype=np.float32)
    return np.asarray(scores[0] / 100.0, np.float32)


def as_text(tokens: Tokens) -> str:
    """Tokens as characters, which is what rapidfuzz compares fastest; some are halves of pairs, and no text."""
    return tokens.astype("<u2").tobytes().decode("utf-16-le", "surrogatepass") if _plain(tokens) else _wide(tokens)


def _plain(tokens: Tokens) -> bool:
    """Whether no token is one of the codes that UTF-16 uses in pairs."""
    return len(tokens) == 0 or int(tokens.max()) < 0xD800


def _wide(tokens: Tokens) -> str:
    return "".join(map(chr, tokens.tolist()))


def texts(ids: Tokens, low: Int64, high: Int64) -> list[str]:
    """The collapsed tokens of frames [low, high) of each region of `ids` [frames], as text."""
    out = np.empty(int((high - low).sum()), np.uint16)
    ends = np.zeros(len(low) + 1, np.int64)
    _collapse(ids, low, high, out, ends)
    whole = as_text(out[: ends[-1]])
    return [whole[a:b] for a, b in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)]


@numba.njit(nogil=True, cache=True)
def _collapse(ids: Tokens, low: Int64, high: Int64, out: Tokens, ends: Int64) -> None:
    at = 0
    for region in range(len(low)):
        for frame in range(low[region], high[region]):
            if frame == low[region] or ids[frame] != ids[frame - 1]:
                out[at] = ids[frame]
                at += 1
        ends[region + 1] = at


def edit_similarity(query: Tokens, stretch: Tokens) -> float:
    """One minus the edit distance of two token sequences over the length of the longer, in [0, 1]."""
    return float(Levenshtein.normalized_similarity(query.tolist(), stretch.tolist()))
