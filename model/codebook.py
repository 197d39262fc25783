"""Codebooks: spherical k-means over unit embeddings, and codes that tell a frame more exactly than its token does.

Spherical k-means: Dhillon and Modha 2001. Product quantisation of residuals: Jégou, Douze and Schmid 2011.
Several independent codebooks whose errors average out: Xia, He, Wen and Sun 2013 (joint inverted indexing).
Tokens with a price on each change: duration-penalised dynamic programming, Kamper and van Niekerk 2021.
Crowding of centroids: cross-domain similarity local scaling, Conneau et al. 2018.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property

import numba
import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]

MIN_SIZE, MAX_SIZE = 512, 8_192
FRAMES_PER_CENTROID = 10  # of the archive; see `codebook_size`
PQ_PARTS, PQ_SIZE = 8, 256
FURTHER = 3  # codebooks beside the first, whose tokens are an archive's codes; docs/decisions.md has the figures
SWITCH_PENALTY = 0.1  # cosine that a change of token must gain over its run; docs/decisions.md has the figures
_BLOCK = 1_024  # rows of a similarity matrix held at a time
_PATH_BLOCK = 256  # states
ITERATIONS = 8
FINAL_ITERATIONS = 3
NEAR_GROUPS = 24  # whose centroids a frame chooses among at last, its own included
GROUP_FRAMES = 64  # per group of the first level
FIT_FRAMES = 16  # per centroid: more serve it no better and cost time
NEIGHBOURS = 10  # of a centroid, by which it is told how crowded it is about it


class CodebookError(ValueError):
    """A codebook cannot be fitted to, or used with, what was given."""

    code = "codebook_invalid"


@dataclass(frozen=True, eq=False)
class Codebook:
    """Unit `centroids` float32 [K, dim], and what codes are made with: one of two, or neither.

    `pq` float32 [M, 256, dim / M] is a product quantiser of residuals; `further` float32 [M, K, dim] are the unit
    centroids of more codebooks, of which no two lie alike. `switch_penalty` is the cosine that a change of token costs,
    see `tokenize`.
    """

    centroids: Float32
    pq: Float32 | None = None
    switch_penalty: float = SWITCH_PENALTY
    further: Float32 | None = None

    def __post_init__(self) -> None:
        if self.centroids.ndim != 2 or not 0 < len(self.centroids) <= 65_536:
            raise CodebookError(f"centroids of shape {self.centroids.shape}: [K, dim] with K <= 65,536 is needed")
        if self.pq is not None:
            parts, size, width = self.pq.shape
            if size > 256 or parts * width != self.dim:
                raise CodebookError(f"a product quantiser of shape {self.pq.shape} for {self.dim} dimensions")
        if self.further is not None and (self.pq is not None or self.further.shape[1:] != self.centroids.shape):
            raise CodebookError(f"further codebooks of shape {self.further.shape} beside {self.centroids.shape}")

    @property
    def size(self) -> int:
        """K."""
        return len(self.centroids)

    @property
    def parts(self) -> int:
        """Bytes of codes a frame: one for each part of a product quantiser, two for each further codebook, or 0."""
        if self.further is not None:
            return 2 * len(self.further)
        return 0 if self.pq is None else len(self.pq)

    @property
    def nbytes(self) -> int:
        """Of all its numbers."""
        return sum(numbers.nbytes for numbers in (self.centroids, self.pq, self.further) if numbers is not None)

    @cached_property
    def others(self) -> tuple[Codebook, ...]:
        """The further codebooks, each by itself."""
        further = () if self.further is None else self.further
        return tuple(Codebook(centroids, None, self.switch_penalty) for centroids in further)

    @property
    def dim(self) -> int:
        """Dimensions of an embedding."""
        return int(self.centroids.shape[1])

    @cached_property
    def sha256(self) -> str:
        """Hash of all numbers: two codebooks are the same if this is."""
        shapes = self.centroids.shape, None if self.pq is None else self.pq.shape
        digest = hashlib.sha256(repr((*shapes, self.switch_penalty)).encode())
        digest.update(np.ascontiguousarray(self.centroids, "<f4").tobytes())
        if self.pq is not None:
            digest.update(np.ascontiguousarray(self.pq, "<f4").tobytes())
        if self.further is not None:
            digest.update(repr(self.further.shape).encode())
            digest.update(np.ascontiguousarray(self.further, "<f4").tobytes())
        return digest.hexdigest()

    @cached_property
    def crowding(self) -> Float32:
        """How crowded it is about each centroid: float32 [K], cosines, 0 on average.

        Half of the mean cosine with its NEIGHBOURS nearest, less the mean of that. A centroid among many (a hub:
        Radovanović, Nanopoulos and Ivanović 2010) is near whatever is asked; what it is nearer than that tells more.
        """
        return np.asarray(self._near - self._near.mean(), np.float32)

    def crowding_at(self, embeddings: Float32) -> Float32:
        """The same about unit `embeddings` float32 [frames, dim]: float32 [frames]."""
        near = _half_near(embeddings @ self.centroids.T, min(NEIGHBOURS, self.size))
        return np.asarray(near - self._near.mean(), np.float32)

    @cached_property
    def _near(self) -> Float32:
        near = np.zeros(self.size, np.float32)
        for start in range(0, self.size if self.size > 1 else 0, _BLOCK):
            block = self.centroids[start : start + _BLOCK] @ self.centroids.T
            np.fill_diagonal(block[:, start:], -np.inf)
            near[start : start + _BLOCK] = _half_near(block, min(NEIGHBOURS, self.size - 1))
        return near

    def assign(self, embeddings: Float32) -> npt.NDArray[np.uint16]:
        """Nearest centroid of each embedding: float32 [frames, dim] to uint16 [frames]."""
        return _nearest(embeddings, self.centroids).astype(np.uint16)

    def tokenize(self, embeddings: Float32) -> npt.NDArray[np.uint16]:
        """The token of each frame of one stretch: float32 [frames, dim] to uint16 [frames].

        The sequence with the highest sum of cosines less `switch_penalty` for each change of token, so that a frame
        which lies between two centroids does not flicker. Without a penalty it is `assign`.
        """
        if len(embeddings) == 0:
            return np.zeros(0, np.uint16)
        return np.asarray(_steady_path(embeddings @ self.centroids.T, np.float32(self.switch_penalty)), np.uint16)

    def cosines(self, embeddings: Float32, ids: npt.NDArray[np.uint16]) -> Float32:
        """Of each embedding with the centroid of its token: float32 [frames]."""
        return np.asarray(np.einsum("fd,fd->f", embeddings, self.centroids[ids]), np.float32)

    def encode(self, embeddings: Float32, ids: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint8]:
        """Codes of one stretch: uint8 [frames, parts]. Raises CodebookError where there is nothing to make them with.

        By a product quantiser those of what `ids` leave over, otherwise the tokens of each further codebook, uint16
        [frames, M] in little-endian bytes.
        """
        if self.further is not None:
            tokens = [other.tokenize(embeddings) for other in self.others]
            return np.ascontiguousarray(np.stack(tokens, axis=1), "<u2").view(np.uint8)
        if self.pq is None:
            raise CodebookError("this codebook has nothing to make codes with")
        parts, _, width = self.pq.shape
        residual = embeddings - self.centroids[ids]
        codes = np.empty((len(embeddings), parts), np.uint8)
        for part in range(parts):
            codes[:, part] = _nearest_euclidean(residual[:, part * width : (part + 1) * width], self.pq[part])
        return codes

    def check_codes(self, codes: npt.NDArray[np.uint8]) -> None:
        """Raises CodebookError where codes uint8 [frames, parts] are not such as `encode` makes."""
        if codes.shape[1] != self.parts:
            raise CodebookError(f"codes of {codes.shape[1]} bytes a frame where they have {self.parts}")
        size = self.size if self.pq is None else self.pq.shape[1]
        highest = int((codes if self.further is None else further_tokens(codes)).max(initial=0))
        if self.parts and highest >= size:
            raise CodebookError(f"a code {highest} where there are {size}")

    def decode(self, ids: npt.NDArray[np.uint16], codes: npt.NDArray[np.uint8] | None) -> Float32:
        """Approximate embeddings float32 [frames, dim], not normalised: with further codebooks the mean of all."""
        out = self.centroids[ids].copy()
        if codes is not None and self.further is not None:
            for centroids, tokens in zip(self.further, further_tokens(codes).T, strict=True):
                out += centroids[tokens]
            out /= np.float32(1 + len(self.further))
        if codes is not None and self.pq is not None:
            parts, _, width = self.pq.shape
            for part in range(parts):
                out[:, part * width : (part + 1) * width] += self.pq[part][codes[:, part]]
        return out


def _half_near(cosines: Float32, count: int) -> Float32:
    """Half of the mean of the `count` highest of each row, [rows, columns] to float32 [rows]; the rows' order goes."""
    first = cosines.shape[1] - count
    cosines.partition(first, axis=1)
    return np.asarray(cosines[:, first:].mean(axis=1) / 2.0, np.float32)


def further_tokens(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint16]:
    """Codes uint8 [frames, 2 M] as the tokens that they are, uint16 [frames, M]."""
    return np.ascontiguousarray(codes).view("<u2")


def codebook_size(frames: int) -> int:
    """K for an archive of so many frames: the power of two nearest to frames / 10, within 512 to 8,192."""
    exponent = round(float(np.log2(max(1.0, frames / FRAMES_PER_CENTROID))))
    return int(np.clip(2**exponent, MIN_SIZE, MAX_SIZE))


def fit_codebook(
    embeddings: Float32,
    size: int,
    *,
    seed: int = 0,
    iterations: int = ITERATIONS,
    parts: int = PQ_PARTS,
    start: Float32 | None = None,
) -> Codebook:
    """Centroids and product quantiser fitted to unit `embeddings` float32 [frames, dim], without labels.

    `parts` = 0 leaves the product quantiser out. Centroids begin with those in `start` float32 [size, dim], if it is
    given, and keep their numbers. Raises CodebookError where there are fewer frames than centroids.
    """
    if start is None:
        centroids = spherical_kmeans(embeddings, size, seed=seed, iterations=iterations)
    elif len(embeddings) < size or len(start) != size:
        raise CodebookError(f"{len(embeddings)} frames and {len(start)} centroids to begin with cannot give {size}")
    else:
        centroids = _lloyd(embeddings, start, iterations)
    if parts == 0:
        return Codebook(centroids)
    rng = np.random.default_rng(seed)
    sample = embeddings[rng.permutation(len(embeddings))[:50_000]]
    residual = sample - centroids[_nearest(sample, centroids)]
    width = embeddings.shape[1] // parts
    pq = np.stack([_kmeans(residual[:, p * width : (p + 1) * width], PQ_SIZE, rng, iterations) for p in range(parts)])
    return Codebook(centroids, pq)


def with_further(codebook: Codebook, embeddings: Float32, count: int = FURTHER, *, seed: int = 0) -> Codebook:
    """The codebook and `count` more of its size, fitted to the same unit `embeddings` from other seeds.

    Each cuts the sphere in other places: the mean of a frame's centroids is nearer to it than any of them, and so is
    the mean of their similarities to that of the frame.
    """
    size = codebook.size
    further = [spherical_kmeans(embeddings, size, seed=seed + 1 + number) for number in range(count)]
    return replace(codebook, pq=None, further=np.stack(further))


def spherical_kmeans(embeddings: Float32, size: int, *, seed: int = 0, iterations: int = ITERATIONS) -> Float32:
    """Unit centroids float32 [size, dim] of unit `embeddings`, in two levels.

    First about sqrt(size) groups of frames, then in each group as many centroids as its share of the frames, then
    FINAL_ITERATIONS in which a frame chooses among the centroids of its own and the nearest other groups. Many times
    less work than all against all, for nearly the same distortion (docs/decisions.md). `iterations` are those of the
    first two. Raises CodebookError where frames are too few.
    """
    if len(embeddings) < size:
        raise CodebookError(f"{len(embeddings)} frames cannot carry {size} centroids")
    rng = np.random.default_rng(seed)
    points = embeddings[rng.permutation(len(embeddings))[: FIT_FRAMES * size]]
    groups = max(1, round(size**0.5))
    coarse = _lloyd(points[: GROUP_FRAMES * groups], points[:groups], iterations)
    of_group = _nearest(points, coarse)
    counts = np.bincount(of_group, minlength=groups)
    members = np.split(np.argsort(of_group, kind="stable"), np.cumsum(counts)[:-1])
    shares = _shares(counts, size)
    fine = [
        _lloyd(points[inside], points[inside[:wanted]], iterations)
        for inside, wanted in zip(members, shares, strict=True)
        if wanted
    ]
    centroids = np.concatenate(fine)
    owner = np.repeat(np.arange(groups), shares)
    nearest = np.argsort(-(coarse @ coarse.T), axis=1)[:, :NEAR_GROUPS]
    choices = [np.flatnonzero(np.isin(owner, near)) for near in nearest]
    for _ in range(FINAL_ITERATIONS):
        ids, similarity = np.zeros(len(points), np.int64), np.zeros(len(points), np.float32)
        for inside, among in zip(members, choices, strict=True):
            if len(inside) and len(among):
                found, similarity[inside] = _nearest_with_similarity(points[inside], centroids[among])
                ids[inside] = among[found]
        centroids = _moved(points, ids, similarity, centroids)
    return centroids


def _shares(counts: npt.NDArray[np.int64], total: int) -> npt.NDArray[np.int64]:
    """`total` shared out in proportion to `counts`, to none more than it has (largest remainders)."""
    exact = counts * (total / counts.sum())
    shares: npt.NDArray[np.int64] = np.minimum(np.floor(exact), counts).astype(np.int64)
    while shares.sum() < total:
        missing = total - int(shares.sum())
        spare = np.where(shares < counts, exact - shares, -np.inf)
        first = np.argsort(-spare, kind="stable")[:missing]
        shares[first[spare[first] > -np.inf]] += 1
    return shares


def _lloyd(points: Float32, centroids: Float32, iterations: int) -> Float32:
    """Lloyd's iterations on the sphere, all against all."""
    for _ in range(iterations):
        centroids = _moved(points, *_nearest_with_similarity(points, centroids), centroids)
    return centroids


def _moved(points: Float32, ids: npt.NDArray[np.int64], similarity: Float32, centroids: Float32) -> Float32:
    """Each centroid at the mean of its points; an empty one moves to the worst-served points."""
    size = len(centroids)
    sums = _sums(points, ids, size)
    empty = np.flatnonzero(np.bincount(ids, minlength=size) == 0)
    if len(empty):
        worst = np.argpartition(similarity, len(empty) - 1)[: len(empty)]
        sums[empty] = points[worst]
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    return np.where(norms > 1e-6, sums / np.maximum(norms, 1e-6), centroids).astype(np.float32)


def _kmeans(points: Float32, size: int, rng: np.random.Generator, iterations: int) -> Float32:
    """Euclidean k-means; with fewer points than centroids the points are repeated."""
    centroids = points[rng.choice(len(points), size, replace=len(points) < size)].astype(np.float32)
    for _ in range(iterations):
        ids = _nearest_euclidean(points, centroids)
        counts = np.bincount(ids, minlength=size)[:, None]
        sums = _sums(points, ids, size)
        centroids = np.where(counts > 0, sums / np.maximum(counts, 1), centroids).astype(np.float32)
    return centroids


def _sums(points: Float32, ids: npt.NDArray[np.integer], size: int) -> Float32:
    """Sum of the points of each cluster, float32 [size, dim], in a fixed order."""
    order = np.argsort(ids, kind="stable")
    present, first = np.unique(ids[order], return_index=True)
    out = np.zeros((size, points.shape[1]), np.float32)
    out[present] = np.add.reduceat(points[order], first, axis=0)
    return out


@numba.njit(nogil=True, cache=True, fastmath={"nnan", "nsz"})
def _steady_path(similarity: Float32, penalty: np.float32) -> npt.NDArray[np.int32]:
    """Best path through [frames, K] where each change costs `penalty`; a change comes from the best state.

    States are gone through in blocks whose highest total is known, so that only one block is searched for the best.
    """
    frames, size = similarity.shape
    stayed = np.empty((frames, size), np.bool_)
    best = np.zeros(frames, np.int32)
    total = similarity[0].copy()
    best[0] = total.argmax()
    for t in range(1, frames):
        changed = total[best[t - 1]] - penalty
        highest, where = np.float32(-np.inf), 0
        for first in range(0, size, _PATH_BLOCK):
            highest_here = np.float32(-np.inf)
            for k in range(first, min(first + _PATH_BLOCK, size)):
                stays = total[k] >= changed
                stayed[t, k] = stays
                value = (total[k] if stays else changed) + similarity[t, k]
                total[k] = value
                highest_here = max(highest_here, value)
            if highest_here > highest:
                highest, where = highest_here, first
        while total[where] != highest:
            where += 1
        best[t] = where
    path = np.zeros(frames, np.int32)
    path[-1] = best[-1]
    for t in range(frames - 1, 0, -1):
        path[t - 1] = path[t] if stayed[t, path[t]] else best[t - 1]
    return path


def _nearest(points: Float32, centroids: Float32) -> npt.NDArray[np.int64]:
    return _nearest_with_similarity(points, centroids)[0]


def _nearest_with_similarity(points: Float32, centroids: Float32) -> tuple[npt.NDArray[np.int64], Float32]:
    ids = np.empty(len(points), np.int64)
    similarity = np.empty(len(points), np.float32)
    for start in range(0, len(points), _BLOCK):
        block = points[start : start + _BLOCK] @ centroids.T
        best = block.argmax(1)
        ids[start : start + _BLOCK] = best
        similarity[start : start + _BLOCK] = block[np.arange(len(block)), best]
    return ids, similarity


def _nearest_euclidean(points: Float32, centroids: Float32) -> npt.NDArray[np.int64]:
    half_square = 0.5 * (centroids**2).sum(1)
    ids = np.empty(len(points), np.int64)
    for start in range(0, len(points), _BLOCK):
        ids[start : start + _BLOCK] = (points[start : start + _BLOCK] @ centroids.T - half_square).argmax(1)
    return ids
