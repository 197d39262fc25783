"""The rules of Citus, proved on plain PostgreSQL: of the schema, of each statement, and of its plan on partitions."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection, Engine, text

import service
from indexer import database, distribution, intake, integrity, pipeline, store
from indexer.distribution import DISTRIBUTED, LOCAL, REFERENCE, Placed
from indexer.recordings import delete_recording, list_recordings
from indexer.schema import Base
from model.tokenizer import Tokenizer
from service import retokenizing
from service.clips import read_clip
from service.search.answer import Request
from service.search.engine import SearchEngine
from service.search.query import Reference

DEMO = Path(service.__file__).parent / "demo"
PARTITIONS = 4


def column_of_rows(connection: Connection, statement: str, **values: object) -> list[Any]:
    return list(connection.execute(text(statement), values).scalars())


# The schema.


def test_every_table_has_its_place() -> None:
    assert {*DISTRIBUTED, *REFERENCE, *LOCAL} == set(Base.metadata.tables)
    assert len(DISTRIBUTED) + len(REFERENCE) + len(LOCAL) == len(Base.metadata.tables)


@pytest.mark.parametrize(("table", "column"), DISTRIBUTED.items())
def test_each_key_has_the_distribution_column(engine: Engine, table: str, column: str) -> None:
    with engine.connect() as connection:
        keys = connection.execute(
            text("""
                SELECT indexrelid::regclass::text, array(
                    SELECT attname FROM pg_attribute WHERE attrelid = indrelid AND attnum = ANY(indkey)
                ) FROM pg_index WHERE indrelid = CAST(:table AS regclass) AND (indisunique OR indisexclusion)
            """),
            {"table": table},
        ).all()
        (kind,) = column_of_rows(
            connection,
            "SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = CAST(:table AS regclass) "
            "AND attname = :column AND attnotnull AND attidentity = '' AND attgenerated = ''",
            table=table, column=column,
        )  # fmt: skip
    assert keys
    for name, columns in keys:
        assert column in columns, name
    assert kind == "bigint"


def test_foreign_keys_lead_only_where_they_may(engine: Engine) -> None:
    with engine.connect() as connection:
        keys = connection.execute(
            text("""
                SELECT conrelid::regclass::text AS source, confrelid::regclass::text AS target,
                    confdeltype, confupdtype, conname FROM pg_constraint WHERE contype = 'f'
            """)
        ).all()
    assert {key.source for key in keys} >= {"segment", "recording", "codebook", "watch_hit"}
    for key in keys:
        if key.source in DISTRIBUTED or key.source in REFERENCE:
            assert key.target in REFERENCE, key.conname
        else:
            assert key.target in REFERENCE or key.target in LOCAL, key.conname
        if key.source in DISTRIBUTED:  # to nothing, or to a default, would change the column or need to know it
            assert key.confdeltype in "ac", key.conname
        assert key.confupdtype == "a", key.conname


def test_there_are_no_triggers_rules_or_identities_that_would_not_spread(engine: Engine) -> None:
    tables = [*DISTRIBUTED, *REFERENCE]
    with engine.connect() as connection:
        assert not column_of_rows(
            connection,
            "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal AND tgrelid::regclass::text = ANY(:tables)",
            tables=tables,
        )
        assert not column_of_rows(
            connection, "SELECT rulename FROM pg_rules WHERE tablename = ANY(:tables)", tables=tables
        )
        assert not column_of_rows(
            connection,
            "SELECT attname FROM pg_attribute WHERE attrelid::regclass::text = ANY(:tables) AND attidentity <> ''",
            tables=list(DISTRIBUTED),
        )


# What `sayagain cluster init` does of it here.


def test_foreign_keys_go_and_come_back(engine: Engine) -> None:
    with engine.begin() as connection:
        before = distribution.foreign_keys(connection)
        dropped = distribution.drop_foreign_keys(connection)
        assert dropped == before
        assert len(before) >= 10
        assert distribution.foreign_keys(connection) == []
        distribution.add_foreign_keys(connection, dropped)
        assert distribution.foreign_keys(connection) == before
    database.check(engine)


def test_without_citus_it_says_so(engine: Engine) -> None:
    with pytest.raises(distribution.CitusMissing) as raised:
        distribution.distribute(engine)
    assert raised.value.code == "citus_missing"


def test_what_is_still_to_be_placed() -> None:
    everything = ["tokenizer", "archive", "codebook", "recording", "segment"]
    assert distribution.lacking({}) == everything
    assert distribution.lacking({"archive": Placed("local"), "job": Placed("local")}) == everything
    assert distribution.lacking({"tokenizer": Placed("reference")}) == everything[1:]
    assert distribution.lacking(distribution.wanted()) == []
    for odd in (
        {"segment": Placed("reference")},
        {"segment": Placed("distributed", "archive_id")},
        {"recording": Placed("distributed", "id")},
        {"job": Placed("reference")},
    ):
        with pytest.raises(distribution.CitusConflict):
            distribution.lacking(odd)


# Statements and their plans.


class Statements:
    """All that are sent to a database, with their values."""

    def __init__(self, engine: Engine) -> None:
        self.seen: dict[str, Any] = {}
        sa.event.listen(engine, "before_cursor_execute", self._note)

    def _note(self, _connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        self.seen.setdefault(statement, parameters)

    def of(self, table: str) -> dict[str, Any]:
        """Those that name a table."""
        return {one: values for one, values in self.seen.items() if re.search(rf"\b{table}\b", without_strings(one))}


def without_strings(statement: str) -> str:
    return re.sub(r"'[^']*'", "''", statement)


@pytest.fixture
def partitioned(engine: Engine) -> Engine:
    """`segment` in partitions by the hash of its recording, as Citus has it in shards."""
    with engine.begin() as connection:
        keys = [key for key in distribution.foreign_keys(connection) if key.table in DISTRIBUTED]
        for table, column in DISTRIBUTED.items():
            for statement in (
                f"ALTER TABLE {table} RENAME TO whole",
                f"CREATE TABLE {table} (LIKE whole INCLUDING DEFAULTS INCLUDING CONSTRAINTS) "
                f"PARTITION BY HASH ({column})",
                *(
                    f"CREATE TABLE {table}_{i} PARTITION OF {table} "
                    f"FOR VALUES WITH (MODULUS {PARTITIONS}, REMAINDER {i})"
                    for i in range(PARTITIONS)
                ),
            ):
                connection.execute(text(statement))
            # Its keys: PostgreSQL refuses one without the column of the partitions, as Citus does.
            indexes = column_of_rows(
                connection, "SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = 'whole'::regclass"
            )
            connection.execute(text("DROP TABLE whole"))
            for index in indexes:
                connection.execute(text(index.replace(" ON public.whole ", f" ON {table} ")))
        distribution.add_foreign_keys(connection, keys)
    return engine


def worked_on(partitioned: Engine, tokenizer_path: Path, tmp_path: Path) -> Statements:
    """All that is said while an archive is indexed, searched, refitted, grown and deleted."""
    statements = Statements(partitioned)
    folder = tmp_path / "tapes"
    shutil.copytree(DEMO / "archive" / "skerry-radio", folder)
    pipeline.index_archive(partitioned, [folder], "radio", tokenizer_path)
    pipeline.index_archive(partitioned, [folder], "radio", tokenizer_path)
    tokenizer = Tokenizer(tokenizer_path, threads=1)
    search = SearchEngine(partitioned, tokenizer)
    clip = read_clip(DEMO / "query.opus", 60.0)
    first = search.search(Request([clip], archive="radio", limit=5))
    assert len(first.hits) == 5
    hit = first.hits[0]
    there = Reference(hit.recording.name, hit.start_s, hit.end_s)
    search.search(Request([there], archive="radio", limit=5, where={}, exclude=["02-tuesday.opus"]))
    search.search(Request([clip], archive="radio", limit=5, exact=True, right=[there]))
    (folder / "13-jingle.opus").write_bytes((folder / "12-school.opus").read_bytes())  # replaced
    (folder / "11-market.opus").rename(folder / "11-harbour.opus")
    (folder / "10-late-night.opus").unlink()
    pipeline.index_archive(partitioned, [folder], "radio", tokenizer_path, prune=True)
    retokenizing.refit(partitioned, "radio", tokenizer_path)
    retokenizing.back(partitioned, "radio", lambda _: tokenizer_path)
    search.search(Request([clip], archive="radio", limit=5))
    with partitioned.begin() as connection:
        archive = store.get_archive(connection, "radio")
        recording = list_recordings(connection, archive.id, 1)[0]
        assert archive.codebook_id is not None
        grown = intake.NewRecording(
            recording.id, recording.name, recording.path.encode(), 1, 1, recording.sha256, 1.0, archive.codebook_id
        )
        intake.put_recording(connection, archive.id, grown, [intake.NewSegment(0.0, 1, b"x")], kept=1)  # as it comes
        store.list_archives(connection)
        integrity.check(connection, "radio", files=False, contents=False)
        delete_recording(connection, archive.id, recording.name)
        store.delete_archive(connection, "radio")
    return statements


def test_all_that_is_done_keeps_to_the_rules(partitioned: Engine, tokenizer_path: Path, tmp_path: Path) -> None:
    statements = worked_on(partitioned, tokenizer_path, tmp_path)
    seen = statements.of("segment")
    assert len(seen) >= 5
    for statement in seen:
        assert broken(statement) is None, statement
    for statement in statements.of("recording"):  # a reference table: no volatile function may change it
        plain = " ".join(without_strings(statement).split())
        assert not (plain.startswith(("UPDATE", "DELETE")) and re.search(r"clock_timestamp|random\(", plain)), plain
    with partitioned.connect() as connection:
        assert column_of_rows(connection, "SELECT count(*) FROM segment") == [0]  # deletions have reached all
        planned = [
            shards_of(connection, statement, values) for statement, values in seen.items() if is_planned(statement)
        ]
        assert len(planned) >= 5
        single = [
            shards_of(connection, statement, values)
            for statement, values in seen.items()
            if is_planned(statement) and re.search(r"recording_id = %", statement)
        ]
    assert len(single) >= 2
    assert all(len(shards) == 1 for shards in single)  # one recording: one shard


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT tokens FROM segment WHERE archive_id = 1",
        "UPDATE segment SET frames = 1, recording_id = 2 WHERE recording_id = 1",
        "SELECT tokens FROM segment WHERE recording_id = 1 FOR UPDATE",
    ],
)
def test_what_breaks_the_rules_is_seen(statement: str) -> None:
    assert broken(statement) is not None


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT one.tokens FROM segment AS one JOIN segment AS other USING (position)",
        "SELECT tokens FROM segment WHERE position = 1",
    ],
)
def test_plans_that_break_them_are_seen(partitioned: Engine, statement: str) -> None:
    with partitioned.connect() as connection, pytest.raises(AssertionError):
        shards_of(connection, statement, None)


def broken(statement: str) -> str | None:
    """Which rule a statement about segments breaks."""
    plain = " ".join(without_strings(statement).split())
    if plain.startswith("ANALYZE") or "pg_total_relation_size" in plain:
        return None
    if "recording_id" not in plain:
        return "it does not say of which recordings"
    changed = re.search(r"\bUPDATE segment\b.*?\bSET\b(.*?)(\bFROM\b|\bWHERE\b|$)", plain)
    if changed is not None and "recording_id" in changed[1]:
        return "it moves segments to another recording"
    if re.search(r"clock_timestamp|random\(|nextval|FOR UPDATE|RECURSIVE|TABLESAMPLE", plain):
        return "it has what works within one shard only"
    return None


def is_planned(statement: str) -> bool:
    return re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH)\b", statement) is not None and "pg_total" not in statement


def shards_of(connection: Connection, statement: str, values: Any) -> set[str]:
    """The shards that a statement reads, by its plan, which is checked."""
    driver = connection.connection.dbapi_connection
    assert driver is not None
    cursor = driver.cursor()
    cursor.execute(f"EXPLAIN (FORMAT JSON) {statement}", values)
    (plan,) = cursor.fetchone()
    return check((plan if isinstance(plan, list) else json.loads(plan))[0]["Plan"], [], statement)


def check(plan: dict[str, Any], above: list[str], statement: str) -> set[str]:
    """The shards under a node of a plan, each reached by a condition on the recording; no two of them are joined."""
    names = ("Index Cond", "Recheck Cond", "Filter", "Hash Cond", "Merge Cond", "Join Filter")
    conditions = [*above, *(str(plan[name]) for name in names if name in plan)]
    below = [check(part, conditions, statement) for part in plan.get("Plans", [])]
    if plan["Node Type"] in ("Nested Loop", "Hash Join", "Merge Join"):
        assert sum(bool(shards) for shards in below) <= 1, statement
    shards = set().union(*below)
    relation = str(plan.get("Relation Name", ""))
    if re.fullmatch(r"segment_\d", relation) and plan["Node Type"] != "ModifyTable":
        by_conditions = [c for c in conditions if "recording_id" in c or "source.id" in c or "recording.id" in c]
        assert by_conditions, (statement, plan)
        shards.add(relation)
    return shards
