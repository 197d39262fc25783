import itertools
import math
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Connection, text

from indexer import store
from indexer.keys import bigrams, coarse_classes, ngram_keys
from model.codebook import Codebook
from model.tokens import TokenString
from service.search.candidates import SegmentKey, lookup


@pytest.fixture
def connection(client: TestClient) -> Iterator[Connection]:
    with client.app.state.backend.connect() as connection:  # type: ignore[attr-defined]
        yield connection


def stored_keys(connection: Connection, archive_id: int) -> dict[SegmentKey, set[int]]:
    rows = connection.execute(
        text("SELECT recording_id, position, keys FROM segment WHERE archive_id = :id"), {"id": archive_id}
    )
    return {SegmentKey(row[0], row[1]): set(row[2]) for row in rows}


def textbook(stored: dict[SegmentKey, set[int]], keys: set[int]) -> dict[SegmentKey, float]:
    """Summed rarity of shared keys, segment by segment."""
    counts = Counter(key for have in stored.values() for key in have & keys)
    return {
        segment: sum(math.log(1 + len(stored) / counts[key]) for key in have & keys)
        for segment, have in stored.items()
        if have & keys
    }


def test_lookup_agrees_with_the_textbook(connection: Connection) -> None:
    archive = store.get_archive(connection, "demo")
    stored = stored_keys(connection, archive.id)
    rng = np.random.default_rng(0)
    common = [key for key, _ in Counter(k for have in stored.values() for k in have).most_common(20)]
    for trial in range(10):
        some = rng.choice(sorted(set().union(*stored.values())), 12)
        keys = np.concatenate([some, common[trial : trial + 3], [-32_768]]).astype(np.int16)
        expected = textbook(stored, {int(k) for k in keys})
        found = lookup(connection, archive.id, keys, archive.segments, 10**6)
        assert {c.segment: pytest.approx(c.weight) for c in found} == expected
        assert [c.weight for c in found] == sorted((c.weight for c in found), reverse=True)
        assert lookup(connection, archive.id, keys, archive.segments, 5) == found[:5]


def test_stored_keys_are_the_bigrams_of_the_stored_tokens(connection: Connection) -> None:
    archive = store.get_archive(connection, "demo")
    assert archive.codebook_id is not None
    classes = coarse_classes(store.load_codebook(connection, archive.codebook_id))
    stored = stored_keys(connection, archive.id)
    rows = connection.execute(
        text("SELECT recording_id, position, tokens FROM segment WHERE archive_id = :id"), {"id": archive.id}
    )
    for row in rows:
        coarse = [int(classes[token]) for token in TokenString.from_bytes(row[2]).ids]
        coarse = [c for i, c in enumerate(coarse) if i == 0 or c != coarse[i - 1]]
        pairs = {(a << 8 | b) for a, b in itertools.pairwise(coarse)}
        assert stored[SegmentKey(row[0], row[1])] == {p - 65_536 if p >= 32_768 else p for p in pairs}


def test_a_lookup_uses_the_index(connection: Connection) -> None:
    connection.execute(text("SET LOCAL enable_seqscan = off"))  # so small a table is not worth it
    plan = "\n".join(
        row[0]
        for row in connection.execute(text("EXPLAIN SELECT 1 FROM segment WHERE keys @> ARRAY[CAST(7 AS smallint)]"))
    )
    assert "segment_keys_idx" in plan


def test_neighbouring_centroids_share_a_class() -> None:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((256, 16))
    near = np.repeat(centres, 4, axis=0) + 0.02 * rng.standard_normal((1_024, 16))
    codebook = Codebook((near / np.linalg.norm(near, axis=1, keepdims=True)).astype(np.float32))
    classes = coarse_classes(codebook).reshape(256, 4)
    assert (classes == classes[:, :1]).all(1).mean() > 0.75
    assert (coarse_classes(codebook) == coarse_classes(codebook)).all()


def test_keys_of_short_strings() -> None:
    classes = np.arange(256, dtype=np.uint8)
    none = np.zeros(0, np.uint16)
    assert len(bigrams(none, classes)) == 0
    assert len(bigrams(np.array([5], np.uint16), classes)) == 0
    assert bigrams(np.array([1, 2, 1], np.uint16), classes).tolist() == [258, 513]
    # 0xFFFE and 0xFEFF as signed 16-bit numbers, each once.
    assert ngram_keys(np.array([255, 255, 254, 255, 254], np.uint16), classes).tolist() == [0xFEFF - 65_536, -2]
