from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.codebook import Codebook
from model.export import stamp
from model.tokenizer import Tokenizer
from model.tokens import TokenString
from service.search import shard
from service.search.calibration import DEFAULT_MAP, SAMPLE_SEGMENTS, Evidence, LogisticMap, map_of, measure, sample_of
from service.search.shard import StoredSegment
from tests.service.shards import shard_of, unit, view_of


def test_background_is_robust_to_a_few_true_hits() -> None:
    rng = np.random.default_rng(0)
    similarities = rng.normal(0.3, 0.05, 200).astype(np.float32)
    clean = measure(similarities)
    similarities[:10] = 0.95
    assert measure(similarities).median == pytest.approx(clean.median, abs=0.01)
    assert measure(similarities).spread == pytest.approx(0.05, abs=0.01)


def test_distance_counts_spreads() -> None:
    background = measure(np.array([0.1, 0.2, 0.3, 0.4, 0.5], np.float32))
    assert background.distance(np.array([background.median, 0.6], np.float32)) == pytest.approx(
        [0.0, 0.3 / (1.4826 * 0.1)], rel=1e-4
    )
    assert measure(np.full(5, 0.4, np.float32)).spread == 0.01
    assert measure(np.zeros(0, np.float32)).distance(np.array([0.5], np.float32)).tolist() == [0.5]


FITTED = LogisticMap(1.2, 2.0, -4.0)


def evidence(distance: list[float], similarity: list[float], deep: list[float] | None = None) -> Evidence:
    columns = [None if column is None else np.array(column, np.float32) for column in (distance, similarity, deep)]
    return Evidence(*columns, score_map=FITTED)  # type: ignore[arg-type]


def test_what_was_not_rescored_deep_has_the_score_that_it_had() -> None:
    plain = evidence([1.0, 3.0, 3.0], [0.5, 0.6, 0.6])
    deep = evidence([1.0, 3.0, 3.0], [0.5, 0.6, 0.6], [0.9, np.nan, 0.1])
    assert deep.scores[1] == plain.scores[1]
    assert deep.scores[0] > plain.scores[0]
    assert deep.scores[2] < plain.scores[2]
    some = deep.take([2, 1])
    assert some.scores.tolist() == deep.scores[[2, 1]].tolist()
    assert plain.take([0]).scores.tolist() == plain.scores[:1].tolist()


def test_a_tokenizer_brings_its_map(tmp_path: Path, tokenizer_path: Path) -> None:
    own = tmp_path / "own.onnx"
    own.write_bytes(tokenizer_path.read_bytes())
    stamp(own, (0.25, 3.0, -7.5))
    tokenizer, plain = Tokenizer(own, threads=1), Tokenizer(tokenizer_path, threads=1)
    assert map_of(tokenizer.info) == LogisticMap(0.25, 3.0, -7.5)
    assert tokenizer.info.sha256 != plain.info.sha256
    assert replace(tokenizer.info, sha256="", score_map=None) == replace(plain.info, sha256="", score_map=None)
    assert map_of(replace(tokenizer.info, score_map=None)) == DEFAULT_MAP


def test_scores_rise_with_distance_within_zero_and_one() -> None:
    def score(distance: float, similarity: float) -> float:
        return float(evidence([distance], [similarity]).scores[0])

    scores = [score(d, 0.5) for d in (-1e4, -1.0, 0.0, 4.0, 9.0, 1e4)]
    assert scores == sorted(scores)
    assert scores[0] == pytest.approx(0.0, abs=1e-300)
    assert scores[-1] == 1.0
    assert score(3.0 / 1.2, 0.5) == pytest.approx(0.5)
    assert score(1.0, 0.6) > score(1.0, 0.5)


def test_the_sample_is_the_same_however_the_archive_is_cut_into_shards() -> None:
    rng = np.random.default_rng(0)
    codebook = Codebook(unit(rng, 16, 8))
    segments = [rng.integers(0, 16, int(n)) for n in rng.integers(5, 200, 500)]
    recordings = list(range(500))
    whole = sample_of(view_of(shard_of(segments, codebook, recordings)))
    first = shard_of(segments[:200], codebook, recordings[:200])
    later = [StoredSegment(n, 1, n, TokenString.from_frames(segments[n], 0.04)) for n in range(200, 500)]
    parts = sample_of(view_of(shard.build(later, 16, 0), first))
    assert whole.ids.tolist() == parts.ids.tolist()
    assert len(whole.offsets) - 1 == SAMPLE_SEGMENTS
    assert np.diff(whole.offsets).max() == 100  # four seconds
    assert len(sample_of(view_of()).ids) == 0
