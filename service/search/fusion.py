"""Several examples of a term as one query: each frame of the first is the mean of what all have there, along DTW."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numba
import numpy as np
import numpy.typing as npt

from service.search.query import Query
from service.search.rescoring import Float32, Tables


def averaged(queries: Sequence[Query]) -> Query:
    """One query of all examples, with the tokens and times of the first; itself where there is one.

    Look-up tables are linear in the embeddings, so the mean of tables is the table of the mean; it is not of unit
    length, which takes weight from frames where the examples differ. Alignment is that of Petitjean, Ketterlin and
    Gancarski 2011 (one round of averaging along DTW), by the codes of the other example.
    """
    first = queries[0]
    if len(queries) == 1:
        return first
    token, residual = first.tables.token.copy(), first.tables.residual.copy()
    for other in queries[1:]:
        path = along(np.ascontiguousarray(first.tables.token[:, other.tokens.frame_ids]))
        token += other.tables.token[path]
        residual += other.tables.residual[path]
    count = np.float32(len(queries))
    return replace(first, tables=Tables(token / count, residual / count))


@numba.njit(nogil=True, cache=True)
def along(similarity: Float32) -> npt.NDArray[np.int64]:
    """A column for each row of [rows, columns] along the best path of DTW from corner to corner: int64 [rows]."""
    rows, columns = similarity.shape
    total = np.full((rows + 1, columns + 1), -1e9)
    total[0, 0] = 0.0
    for i in range(rows):
        for j in range(columns):
            total[i + 1, j + 1] = similarity[i, j] + max(total[i, j], total[i, j + 1], total[i + 1, j])
    out = np.zeros(rows, np.int64)
    i, j = rows - 1, columns - 1
    while i >= 0:
        out[i] = j
        if total[i, j] >= total[i, j + 1] and total[i, j] >= total[i + 1, j]:
            i, j = i - 1, max(0, j - 1)
        elif total[i, j + 1] >= total[i + 1, j] or j == 0:
            i -= 1
        else:
            j -= 1
    return out
