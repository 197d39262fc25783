"""N-gram keys: what the candidate stage looks up, tolerant of tokens that are near each other in the codebook."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from model.codebook import Codebook, spherical_kmeans

CLASSES = 256  # coarse classes of centroids; a bigram of classes is one 16-bit key


def coarse_classes(codebook: Codebook) -> npt.NDArray[np.uint8]:
    """The coarse class of each centroid, uint8 [K]: neighbours share one. Follows from the codebook alone."""
    size = min(CLASSES, codebook.size)
    centres = spherical_kmeans(codebook.centroids, size, seed=0)
    return np.asarray((codebook.centroids @ centres.T).argmax(1), np.uint8)


def ngram_keys(ids: npt.NDArray[np.uint16], classes: npt.NDArray[np.uint8]) -> npt.NDArray[np.int16]:
    """Distinct bigram keys of a segment's tokens `ids` [tokens], sorted: int16 [keys]."""
    return np.unique(bigrams(ids, classes))


def bigrams(ids: npt.NDArray[np.uint16], classes: npt.NDArray[np.uint8]) -> npt.NDArray[np.int16]:
    """Keys of all neighbouring pairs of different classes, in order: int16 [pairs]."""
    coarse = classes[ids]
    coarse = coarse[np.concatenate([[True], coarse[1:] != coarse[:-1]])] if len(coarse) else coarse
    pairs = coarse[:-1].astype(np.uint16) * CLASSES + coarse[1:]
    return pairs.view(np.int16)
