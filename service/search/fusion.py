"""Several examples of a term as one query: each frame of the first is the mean of what all have there, along DTW."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numba
import numpy as np
import numpy.typing as npt

from service.search.query import Query
from service.search.rescoring import Float32

MOST_STEP = 3  # frames of another example that one frame of the first may pass


def averaged(queries: Sequence[Query]) -> Query:
    """One query of all examples, with the tokens and times of the first; itself where there is one.

    The mean is not of unit length, which takes weight from frames where the examples differ. Alignment is that of
    Petitjean, Ketterlin and Gancarski 2011 (one round of averaging along DTW), by the codes of the other example.
    """
    first = queries[0]
    if len(queries) == 1:
        return first
    total = first.embeddings.copy()
    for other in queries[1:]:
        total += other.embeddings[along(first.embeddings @ first.codebook.centroids[other.tokens.frame_ids].T)]
    return replace(first, embeddings=total / np.float32(len(queries)))


@numba.njit(nogil=True, cache=True)
def along(similarity: Float32) -> npt.NDArray[np.int64]:
    """A column for each row of [rows, columns], int64 [rows]: the path with the highest sum, begun and ended anywhere.

    From one row to the next it stands still or goes on by one to MOST_STEP columns, as in `rescoring`: with one column
    a row, no path gains by being longer.
    """
    rows, columns = similarity.shape
    total = np.full((rows, columns), -1e9)
    back = np.zeros((rows, columns), np.int64)
    total[0] = similarity[0]
    for i in range(1, rows):
        for j in range(columns):
            best = j
            for step in range(1, min(MOST_STEP, j) + 1):
                if total[i - 1, j - step] > total[i - 1, best]:
                    best = j - step
            total[i, j] = similarity[i, j] + total[i - 1, best]
            back[i, j] = best
    out = np.zeros(rows, np.int64)
    out[-1] = total[-1].argmax()
    for i in range(rows - 1, 0, -1):
        out[i - 1] = back[i, out[i]]
    return out
