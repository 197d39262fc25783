"""Several examples as one query."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from model.codebook import Codebook
from model.tokens import TokenString
from service.search import rescoring
from service.search.fusion import MOST_STEP, along, averaged
from service.search.query import Query
from tests.service.shards import FRAME_S, unit

CODEBOOK = Codebook(unit(np.random.default_rng(0), 64, 16), 0.1 * np.ones((4, 256, 4), np.float32))


def query_of(embeddings: np.ndarray) -> Query:
    tokens = TokenString.from_frames(CODEBOOK.assign(embeddings), FRAME_S)
    return Query(1.0, (0.0, 1.0), tokens, embeddings, CODEBOOK)


def test_one_example_is_itself() -> None:
    query = query_of(unit(np.random.default_rng(1), 6, 16))
    assert averaged([query]) is query


def test_noise_that_examples_do_not_share_is_averaged_out() -> None:
    rng = np.random.default_rng(2)
    word = CODEBOOK.centroids[rng.integers(0, 64, 12)]

    def said(frames: np.ndarray) -> np.ndarray:
        noisy = frames + 0.15 * rng.standard_normal(frames.shape)
        return np.asarray(noisy / np.linalg.norm(noisy, axis=1, keepdims=True), np.float32)

    slow = np.repeat(word, 2, axis=0)
    queries = [query_of(said(word)), query_of(said(slow)), query_of(said(word))]
    mean = averaged(queries)
    clean = rescoring.make_tables(word, CODEBOOK)
    assert mean.tables.token.shape == clean.token.shape
    assert mean.tokens is queries[0].tokens

    def likeness(tables: rescoring.Tables) -> float:
        return float(np.corrcoef(tables.token.ravel(), clean.token.ravel())[0, 1])

    assert likeness(mean.tables) > likeness(queries[0].tables) + 0.02
    same = averaged([queries[0]] * 3)
    assert same.tables.token == pytest.approx(queries[0].tables.token, abs=1e-6)
    assert same.tables.residual == pytest.approx(queries[0].tables.residual, abs=1e-6)
    assert replace(same, embeddings=queries[0].embeddings) == queries[0]


@hypothesis_settings(deadline=None, max_examples=50)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 7))
def test_the_path_is_one_of_the_best(seed: int, rows: int, columns: int) -> None:
    similarity = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    path = along(similarity)
    assert ((np.diff(path) >= 0) & (np.diff(path) <= MOST_STEP)).all()
    every = itertools.product(range(columns), itertools.product(range(MOST_STEP + 1), repeat=rows - 1))
    paths = ((start, *(start + np.cumsum(steps, dtype=int)).tolist()) for start, steps in every)
    best = max(float(similarity[range(rows), p].sum()) for p in paths if p[-1] < columns)
    assert float(similarity[range(rows), path].sum()) == pytest.approx(best, abs=1e-4)


def test_a_path_follows_another_speed() -> None:
    rng = np.random.default_rng(3)
    word = unit(rng, 12, 16)
    assert along(word @ word.T).tolist() == list(range(12))
    slow = along(word @ np.repeat(word, 2, axis=0).T)
    assert (slow // 2).tolist() == list(range(12))
    assert along(word[::2] @ word.T).tolist() == list(range(0, 12, 2))
