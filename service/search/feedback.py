"""What more examples say: the best match of a first search, and hits that are marked right or wrong.

A second look is pseudo relevance feedback (Rocchio 1971; for spoken queries Rodriguez-Fuentes et al. 2014): the best
match is a second example, said in the archive's own sound, and counts as much as it is likely to be right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from model.codebook import Codebook
from model.tokens import TokenString
from service.search import calibration, rescoring
from service.search.calibration import Background, Evidence, LogisticMap
from service.search.localindex import View
from service.search.rescoring import Codes, Float32, Tables
from service.search.stretches import Stretches, similarity_at

WEIGHT = 0.5  # of the best match beside the query, where it is certain to be right
DEPTH = 300  # places that are looked at again
SLACK = 0.25  # of an example's length, on each side of a place
LEAST_SLACK_FRAMES = 2
SAME = 0.97  # mean cosine, frame by frame: a match as near as this is the query itself, and tells nothing new
WRONG = 1.0  # how much of what a place is more like a wrong hit than like the examples is taken off


@dataclass(frozen=True, eq=False)
class Example:
    """One example of a term: its look-up tables, what it is like at large, and how much it says beside others."""

    tables: Tables
    background: Background
    weight: float = 1.0

    @property
    def slack(self) -> int:
        """Frames on each side of a place within which the example is looked for."""
        return max(LEAST_SLACK_FRAMES, round(SLACK * self.tables.frames))


@dataclass(frozen=True, eq=False)
class Setting:
    """What examples are compared in: the archive's view, its codebook, a sample for backgrounds, and the score map."""

    view: View
    codebook: Codebook
    sample: Codes
    score_map: LogisticMap = calibration.DEFAULT_MAP

    def example(self, tables: Tables, weight: float = 1.0) -> Example:
        """An example of these tables."""
        return Example(tables, calibration.background_of(tables, self.sample), weight)

    def stored(self, tokens: TokenString, weight: float = 1.0) -> Example:
        """An example of what is stored."""
        tables = rescoring.make_tables(embeddings_of(tokens, self.codebook), self.codebook)
        return self.example(tables, weight)


def second_look(tables: Tables, places: Stretches, first: Evidence, setting: Setting) -> Evidence:
    """Evidence for places, best first, by the query of `tables`, which gave `first`, and by the best of the places.

    The best place, and the query itself where it is in the archive, are taken to be as like it as the likest of the
    others. What lies deeper than DEPTH is as like it as anything is.
    """
    strings = (places.tokens(setting.view, number) for number in range(len(places)))
    best = next((at for at, one in enumerate(strings) if _alike(tables, one, setting.codebook) < SAME), None)
    if best is None or len(places) < 2:
        return first
    weight = WEIGHT * float(first.scores[best])
    again = setting.stored(places.tokens(setting.view, best), weight)
    second = np.full(len(places), again.background.median, np.float32)
    looked = places.take(np.arange(min(DEPTH, len(places))))
    second[: len(looked)] = similarity_at(again.tables, setting.view, looked, again.slack)
    second[: best + 1] = second[best + 1 :].max(initial=again.background.median)
    return _beside(first, again, second, 1.0)


def marked(
    places: Stretches, first: Evidence, setting: Setting, right: Sequence[TokenString], wrong: Sequence[TokenString]
) -> Evidence:
    """Evidence for places where somebody has said which hits are right and which are wrong.

    A right hit is one more example; a place that is more like a wrong hit than like the examples loses by as much.
    """
    evidence, weight = first, 1.0
    for tokens in right:
        example = setting.stored(tokens)
        similarity = similarity_at(example.tables, setting.view, places, example.slack)
        evidence = _beside(evidence, example, similarity, weight)
        weight += 1.0
    less = np.zeros(len(places), np.float32)
    spread = np.float32(1.0)
    for tokens in wrong:
        example = setting.stored(tokens)
        like = similarity_at(example.tables, setting.view, places, example.slack)
        less = np.maximum(less, like - evidence.similarity)
        spread = np.float32(example.background.spread)
    distance = _float32(evidence.distance - WRONG * less / spread)
    return replace(evidence, distance=distance, similarity=_float32(evidence.similarity - WRONG * less))


def alongside(
    tables: Tables,
    ids: npt.NDArray[np.integer],
    pq: npt.NDArray[np.uint8] | None = None,
    lengths: Float32 | None = None,
) -> float:
    """The mean cosine of a query's frames with those of a stretch, one after another: 1 where it is the query.

    Codes `ids` [frames] and `pq` [frames, bytes] of the stretch are spread over the query's length; `lengths` float32
    [frames] are those of what they stand for, 1 if not given.
    """
    frames, parts = np.arange(tables.frames), tables.residual.shape[1]
    at = frames * len(ids) // tables.frames
    products = tables.token[frames, ids[at]]
    if pq is not None and parts:
        codes = tables.each(pq)[at]
        products = tables.share * (products + tables.residual[frames[:, None], np.arange(parts), codes].sum(axis=1))
    return float((products if lengths is None else products / np.maximum(lengths[at], 1e-6)).mean())


def _alike(tables: Tables, tokens: TokenString, codebook: Codebook) -> float:
    ids = tokens.frame_ids
    return alongside(tables, ids, tokens.pq, np.linalg.norm(codebook.decode(ids, tokens.pq), axis=1))


def _beside(first: Evidence, example: Example, similarity: Float32, weight: float) -> Evidence:
    """The mean of what is known, which has a weight, and of what an example says."""
    part = example.weight / (weight + example.weight)
    distance = (1.0 - part) * first.distance + part * example.background.distance(similarity)
    together = (1.0 - part) * first.similarity + part * similarity
    return replace(first, distance=_float32(distance), similarity=_float32(together))


def _float32(values: npt.NDArray[np.floating]) -> Float32:
    return np.asarray(values, np.float32)


def embeddings_of(tokens: TokenString, codebook: Codebook) -> Float32:
    """What the codes of a token string stand for: unit float32 [frames, dim]."""
    out = codebook.decode(tokens.frame_ids, tokens.pq)
    return np.asarray(out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-6), np.float32)
