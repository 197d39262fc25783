"""Dynamic time warping of two stretches: the path that says which frames are the same sound."""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


@numba.njit(nogil=True, cache=True)
def warp(similarity: Float32) -> Int64:
    """The path from corner to corner with the least sum of 1 - similarity: [n, m] to int64 [steps, 2].

    Steps (1, 1), (1, 0) and (0, 1) of equal weight (Sakoe and Chiba 1978, symmetric without weights); of paths that
    cost the same the one with most diagonal steps from the end.
    """
    n, m = similarity.shape
    total = np.empty((n, m), np.float32)
    for i in range(n):
        for j in range(m):
            here = np.float32(1.0) - similarity[i, j]
            if i == 0 and j == 0:
                total[i, j] = here
            elif i == 0:
                total[i, j] = total[i, j - 1] + here
            elif j == 0:
                total[i, j] = total[i - 1, j] + here
            else:
                total[i, j] = min(total[i - 1, j - 1], total[i - 1, j], total[i, j - 1]) + here
    path = np.empty((n + m - 1, 2), np.int64)
    i, j, at = n - 1, m - 1, n + m - 1
    while True:
        at -= 1
        path[at, 0], path[at, 1] = i, j
        if i == 0 and j == 0:
            break
        if i == 0:
            j -= 1
        elif j == 0:
            i -= 1
        else:
            before = min(total[i - 1, j - 1], total[i - 1, j], total[i, j - 1])
            if total[i - 1, j - 1] == before:
                i, j = i - 1, j - 1
            elif total[i - 1, j] == before:
                i -= 1
            else:
                j -= 1
    return path[at:]


def path_similarity(a: Float32, b: Float32) -> float:
    """Mean cosine along the path between unit embeddings [n, dim] and [m, dim], in [-1, 1]."""
    similarity = np.ascontiguousarray(a @ b.T, np.float32)
    path = warp(similarity)
    return float(similarity[path[:, 0], path[:, 1]].mean())


def same_different(stretches: list[Float32], labels: list[str], speakers: list[str]) -> float:
    """Average precision of "same word" over all pairs of stretches by different speakers (Carlin et al. 2011)."""
    scores: list[float] = []
    same: list[bool] = []
    for i in range(len(stretches)):
        for j in range(i):
            if speakers[i] != speakers[j] and len(stretches[i]) and len(stretches[j]):
                scores.append(path_similarity(stretches[i], stretches[j]))
                same.append(labels[i] == labels[j])
    order = np.argsort(-np.array(scores), kind="stable")
    hit = np.array(same, bool)[order]
    if not hit.any():
        return 0.0
    precision = np.cumsum(hit) / np.arange(1, len(hit) + 1)
    return float(precision[hit].mean())
