"""Ways to find candidate segments, behind one interface: which of an archive's segments deserve a closer look."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numba
import numpy as np
import numpy.typing as npt
import sqlalchemy as sa
import tantivy

from bench.scale.corpus import segments_of
from bench.scale.keys import bigrams, coarse_classes, ngram_keys
from model.codebook import Codebook
from service.search import cascade
from service.search.localindex import View
from service.search.query import Query

Int64 = npt.NDArray[np.int64]
COPY_ROWS = 50_000


class CandidateEngine(Protocol):
    """Finds the segments, counted through all shards, that are likeliest to hold a query, in any order."""

    def find(self, query: Query, depth: int) -> Int64:
        """At most `depth` segments."""

    @property
    def bytes(self) -> int:
        """That it needs beside the token strings, on disk or in memory."""


@dataclass
class Votes:
    """The engine that ships: posting lists of the query's tokens and their neighbours, votes by place."""

    view: View
    codebook: Codebook

    def find(self, query: Query, depth: int) -> Int64:
        """Segments of the windows with the most votes."""
        alive = [part.alive for part in self.view.parts]
        windows = cascade.windows_of(query, self.view, alive, self.codebook.size, depth, False)
        starts = np.cumsum([0, *(part.shard.segments for part in self.view.parts)])
        return np.unique(starts[windows.part] + windows.segment)

    @property
    def bytes(self) -> int:
        """Postings; the codes by frame are needed for rescoring in any case."""
        return sum(p.shard.postings.nbytes + p.shard.lists.nbytes for p in self.view.parts)


@dataclass
class Scan:
    """A compiled scan of all runs of tokens held in memory: DTW on centroids, one step a run."""

    view: View

    def find(self, query: Query, depth: int) -> Int64:
        """Segments with the best paths."""
        bounds = query.tokens.boundaries
        table = np.add.reduceat(query.tables.token, bounds[:-1], axis=0) / np.diff(bounds)[:, None]
        table = np.ascontiguousarray(table.T, np.float32)  # [K, tokens]: a run's row lies together
        scores = []
        for part in self.view.parts:
            best = np.empty(part.shard.segments, np.float32)
            _scan(table, part.shard.ids, part.shard.first, best)
            scores.append(best)
        score = np.concatenate(scores)
        return np.argpartition(-score, min(depth, len(score) - 1))[:depth]

    @property
    def bytes(self) -> int:
        """None beside the codes."""
        return 0


@numba.njit(nogil=True, cache=True)
def _scan(
    table: npt.NDArray[np.float32], ids: npt.NDArray[np.uint16], first: Int64, best: npt.NDArray[np.float32]
) -> None:
    tokens = table.shape[1]
    old = np.empty(tokens + 2, np.float32)
    new = np.empty(tokens + 2, np.float32)
    for segment in range(len(first) - 1):
        old[:] = -1e9
        new[:] = -1e9
        old[1] = new[1] = 0.0  # the query may begin anywhere
        highest = np.float32(-1e9)
        for at in range(first[segment], first[segment + 1]):
            if at > first[segment] and ids[at] == ids[at - 1]:
                continue
            row = table[ids[at]]
            for i in range(tokens):
                new[i + 2] = row[i] + max(old[i + 1], old[i + 2] - row[i], old[i])
            new[1] = 0.0
            highest = max(highest, new[tokens + 1])
            old, new = new, old
        best[segment] = highest


class Gin:
    """PostgreSQL: a GIN index over an array of bigram keys of coarse classes, weighted by rarity."""

    _LOOKUP = sa.text("""
        WITH query AS (SELECT unnest(CAST(:keys AS smallint[])) AS key),
        found AS (SELECT query.key, gin.number FROM query JOIN gin ON gin.keys @> ARRAY[query.key]),
        rarity AS (SELECT key, ln(1 + CAST(:segments AS float8) / count(*)) AS weight FROM found GROUP BY key)
        SELECT number FROM found JOIN rarity USING (key) GROUP BY number ORDER BY sum(weight) DESC LIMIT :depth
    """)

    def __init__(self, database: sa.Engine, view: View, codebook: Codebook) -> None:
        self._classes = coarse_classes(codebook)
        self._database, self._segments = database, sum(part.shard.segments for part in view.parts)
        with database.begin() as connection:
            connection.execute(sa.text("DROP TABLE IF EXISTS gin"))
            connection.execute(sa.text("CREATE UNLOGGED TABLE gin (number int, keys smallint[])"))
            driver = connection.connection.dbapi_connection
            with driver.cursor() as cursor, cursor.copy("COPY gin FROM STDIN (FORMAT BINARY)") as copy:  # type: ignore
                copy.set_types(["int4", "int2[]"])
                for number, ids in segments_of(view):
                    copy.write_row((number, ngram_keys(ids, self._classes).tolist()))
            connection.execute(sa.text("SET LOCAL maintenance_work_mem = '1GB'"))
            connection.execute(sa.text("CREATE INDEX gin_keys ON gin USING gin (keys) WITH (fastupdate = off)"))
        with database.begin() as connection:
            connection.execute(sa.text("ANALYZE gin"))
            self._bytes = connection.execute(sa.text("SELECT pg_total_relation_size('gin')")).scalar_one()

    def find(self, query: Query, depth: int) -> Int64:
        """Segments that share the rarest keys."""
        keys = np.unique(bigrams(query.tokens.ids, self._classes)).tolist()
        with self._database.connect() as connection:
            rows = connection.execute(self._LOOKUP, {"keys": keys, "segments": self._segments, "depth": depth})
            return np.array([row[0] for row in rows], np.int64)

    @property
    def bytes(self) -> int:
        """Of the keys and their index."""
        return int(self._bytes)


class PostingRows:
    """PostgreSQL: one row a bigram key with the list of its segments, added up here."""

    def __init__(self, database: sa.Engine, view: View, codebook: Codebook) -> None:
        self._classes = coarse_classes(codebook)
        self._database, self._segments = database, sum(part.shard.segments for part in view.parts)
        pairs = [(ngram_keys(ids, self._classes), number) for number, ids in segments_of(view)]
        keys = np.concatenate([k for k, _ in pairs])
        numbers = np.repeat(np.array([n for _, n in pairs], np.int32), [len(k) for k, _ in pairs])
        order = np.argsort(keys, kind="stable")
        keys, numbers = keys[order], numbers[order]
        distinct, starts = np.unique(keys, return_index=True)
        with database.begin() as connection:
            connection.execute(sa.text("DROP TABLE IF EXISTS posting"))
            connection.execute(sa.text("CREATE UNLOGGED TABLE posting (key smallint PRIMARY KEY, segments bytea)"))
            connection.execute(sa.text("ALTER TABLE posting ALTER COLUMN segments SET STORAGE EXTERNAL"))
            driver = connection.connection.dbapi_connection
            with driver.cursor() as cursor, cursor.copy("COPY posting FROM STDIN (FORMAT BINARY)") as copy:  # type: ignore
                copy.set_types(["int2", "bytea"])
                for key, some in zip(distinct.tolist(), np.split(numbers, starts[1:]), strict=True):
                    copy.write_row((key, some.tobytes()))
        with database.begin() as connection:
            connection.execute(sa.text("ANALYZE posting"))
            self._bytes = connection.execute(sa.text("SELECT pg_total_relation_size('posting')")).scalar_one()

    def find(self, query: Query, depth: int) -> Int64:
        """Segments that share the rarest keys."""
        keys = np.unique(bigrams(query.tokens.ids, self._classes)).tolist()
        weight = np.zeros(self._segments, np.float32)
        with self._database.connect() as connection:
            statement = sa.text("SELECT segments FROM posting WHERE key = ANY(CAST(:keys AS smallint[]))")
            for row in connection.execute(statement, {"keys": keys}):
                some = np.frombuffer(row[0], np.int32)
                weight[some] += np.log(1 + self._segments / len(some))
        depth = min(depth, self._segments)
        best = np.argpartition(-weight, depth - 1)[:depth]
        return best[weight[best] > 0]

    @property
    def bytes(self) -> int:
        """Of the table."""
        return int(self._bytes)


class Tantivy:
    """tantivy: a local full-text index beside the database; terms are bigrams of coarse classes, ranked by BM25."""

    def __init__(self, view: View, codebook: Codebook) -> None:
        self._classes = coarse_classes(codebook)
        self._folder = tempfile.TemporaryDirectory()
        builder = tantivy.SchemaBuilder()
        builder.add_text_field("keys", tokenizer_name="whitespace", index_option="freq")
        builder.add_integer_field("number", fast=True)
        self._index = tantivy.Index(builder.build(), path=self._folder.name)
        writer = self._index.writer(heap_size=512_000_000, num_threads=2)
        for number, ids in segments_of(view):
            writer.add_document(tantivy.Document(keys=_words(bigrams(ids, self._classes)), number=number))
        writer.commit()
        writer.wait_merging_threads()
        self._index.reload()
        self._searcher = self._index.searcher()

    def find(self, query: Query, depth: int) -> Int64:
        """Segments by BM25."""
        text = _words(np.unique(bigrams(query.tokens.ids, self._classes)))
        if not text:
            return np.zeros(0, np.int64)
        parsed = self._index.parse_query(text, ["keys"])
        hits = self._searcher.search(parsed, depth, count=False).hits
        addresses = [address for _, address in hits]
        return np.array(self._searcher.fast_field_values("number", addresses), np.int64)

    @property
    def bytes(self) -> int:
        """Of its folder."""
        return sum(path.stat().st_size for path in Path(self._folder.name).rglob("*") if path.is_file())


def _words(keys: npt.NDArray[np.int16]) -> str:
    return " ".join(f"k{key & 0xFFFF}" for key in keys.tolist())
