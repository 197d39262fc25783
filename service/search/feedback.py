"""A second look: the best match of a first search is a second example of the term, said in the archive's own sound.

Pseudo relevance feedback (Rocchio 1971; for spoken queries Rodriguez-Fuentes et al. 2014): what is like the query and
like its best match is more likely right. It counts as much as the best match is likely to be right itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model.codebook import Codebook
from model.tokens import TokenString
from service.search import calibration, rescoring
from service.search.calibration import Background, Evidence

WEIGHT = 0.5  # of the second example beside the query, where it is certain to be right
DEPTH = 1_000  # matches that are looked at again
SLACK = 0.25  # of the query's length, on each side of a match
LEAST_SLACK_FRAMES = 2
SAME = 0.97  # mean cosine: a match as near as this is the query itself, and tells nothing new

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Stretch:
    """Frames [start, end) of a token string that match a query, with the similarity."""

    tokens: TokenString
    start: int
    end: int
    similarity: float


def second_look(
    stretches: Sequence[Stretch], background: Background, codebook: Codebook, sample: rescoring.Codes, frames: int
) -> list[Evidence]:
    """Evidence for each of a query's matches, by the query and by the best of them.

    `background` is the query's own, `sample` the codes it was measured on, and `frames` the query's length. The best
    match, and the query itself where it is in the archive, are taken to be as like it as the likest of the others.
    """
    first = [Evidence(background.distance(s.similarity), s.similarity) for s in stretches]
    order = sorted(range(len(stretches)), key=lambda i: -stretches[i].similarity)
    example = next((i for i in order if stretches[i].similarity < SAME), None)
    if example is None or len(order) < 2:
        return first
    weight = WEIGHT * calibration.DEFAULT_MAP.score(first[example].distance, first[example].similarity)
    best, parts = stretches[example], sample.pq.shape[1]
    tables = rescoring.make_tables(embeddings_of(best.tokens.part(best.start, best.end), codebook), codebook, parts > 0)
    again = background_of(tables, sample)
    looked = order[:DEPTH]
    slack = max(LEAST_SLACK_FRAMES, round(SLACK * frames))
    kept = [stretches[i] for i in looked]
    near = rescoring.gather([s.tokens.part(max(0, s.start - slack), s.end + slack) for s in kept], parts)
    second = np.full(len(stretches), again.median, np.float32)  # what is not looked at is like anything else
    for match in rescoring.match(tables, near, per_segment=1):
        second[looked[match.segment]] = match.similarity
    ahead = order.index(example) + 1
    second[order[:ahead]] = second[order[ahead:]].max(initial=again.median)
    return [
        Evidence(
            (one.distance + weight * again.distance(float(value))) / (1.0 + weight),
            (one.similarity + weight * float(value)) / (1.0 + weight),
        )
        for one, value in zip(first, second, strict=True)
    ]


def background_of(tables: rescoring.Tables, sample: rescoring.Codes) -> Background:
    """What the best match of each segment of a sample is like."""
    best = rescoring.match(tables, sample, per_segment=1)
    return calibration.measure(np.array([m.similarity for m in best], np.float32))


def embeddings_of(tokens: TokenString, codebook: Codebook) -> Float32:
    """What the codes of a token string stand for: unit float32 [frames, dim]."""
    out = codebook.decode(tokens.frame_ids, tokens.pq)
    return np.asarray(out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-6), np.float32)
