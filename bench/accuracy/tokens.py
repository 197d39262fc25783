"""An archive's tokens, and what they are like: rate, entropy, and how alike two speakers' tokens of a word are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from bench.accuracy.archive import THREADS, Int64, Recordings, pool
from model.codebook import PQ_PARTS, Codebook, codebook_size, fit_codebook
from model.tokens import TokenString
from service.evaluation.tasks import Place, TaskQuery
from service.search import rescoring

UInt16 = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class TokenFigures:
    """Of an archive's tokens after run-length collapse: K, tokens a second of audio, entropy as a part of log K.

    `unigram` and `bigram` are the mean Jaccard similarity of the sets of tokens, and of pairs of tokens that follow
    each other, of two speakers' pronunciations of a word (BEST-STD, Singh et al. 2024); None where the task has no
    times.
    """

    size: int
    tokens_per_s: float
    entropy: float
    unigram: float | None
    bigram: float | None
    pairs: int


@dataclass(frozen=True, eq=False)
class Tokens:
    """The archive's tokens: `ids` uint16 and `pq` uint8 [total, M] by frame, and the collapsed strings end to end."""

    codebook: Codebook
    ids: UInt16
    pq: npt.NDArray[np.uint8]
    collapsed: UInt16
    offsets: Int64  # of each recording in `collapsed`
    first_frame: Int64  # of each collapsed token and, once more for each recording, its end: [tokens + recordings]


def tokenize(recordings: Recordings, size: int | None, threads: int = THREADS, given: Codebook | None = None) -> Tokens:
    """Tokenize each recording alone, by a codebook that is fitted to the archive unless one is `given`.

    Raises CodebookError for too few frames.
    """
    everything, offsets = recordings.embeddings, recordings.offsets
    with threadpool_limits(threads, user_api="blas"):
        codebook = given or fit_codebook(everything, size or codebook_size(len(everything)), parts=PQ_PARTS)

    def one(number: int) -> TokenString:
        part = everything[offsets[number] : offsets[number + 1]]
        ids = codebook.tokenize(part)
        codes = codebook.encode(part, ids) if codebook.parts else None
        return TokenString.from_frames(ids, recordings.frame_seconds, 0.0, codes)

    with pool(threads) as workers:
        strings = list(workers.map(one, range(len(recordings.names))))
    codes = rescoring.gather(strings, codebook.parts)
    counts = np.concatenate([[0], np.cumsum([len(string) for string in strings])]).astype(np.int64)
    first_frame = np.concatenate([string.boundaries for string in strings])
    return Tokens(codebook, codes.ids, codes.pq, np.concatenate([s.ids for s in strings]), counts, first_frame)


def jaccard(one: UInt16, other: UInt16, grams: int) -> float:
    """Shared part of the sets of runs of `grams` tokens, in [0, 1]; 0 where neither has any."""
    a, b = ({tuple(ids[i : i + grams]) for i in range(len(ids) - grams + 1)} for ids in (one.tolist(), other.tolist()))
    return len(a & b) / len(a | b) if a or b else 0.0


def token_figures(queries: Sequence[TaskQuery], recordings: Recordings, tokens: Tokens) -> TokenFigures:
    """Of all tokens, and of each query's source against each of its references by another speaker."""
    counts = np.bincount(tokens.collapsed, minlength=tokens.codebook.size)
    shares = counts[counts > 0] / counts.sum()
    entropy = float(-(shares * np.log(shares)).sum() / np.log(max(2, tokens.codebook.size)))

    def spoken(place: Place) -> UInt16:
        ids = tokens.ids[recordings.stretch(place)[1]]
        return TokenString.from_frames(ids, recordings.frame_seconds).ids

    pairs = [
        (spoken(query.source), spoken(place))
        for query in queries
        for place in query.relevant
        if query.source.start_s is not None and place.start_s is not None and place.name not in query.exclude
    ]
    uni, bi = ([jaccard(a, b, grams) for a, b in pairs] for grams in (1, 2))
    return TokenFigures(
        size=tokens.codebook.size,
        tokens_per_s=len(tokens.collapsed) / recordings.seconds,
        entropy=entropy,
        unigram=float(np.mean(uni)) if pairs else None,
        bigram=float(np.mean(bi)) if pairs else None,
        pairs=len(pairs),
    )
