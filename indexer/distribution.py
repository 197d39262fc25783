"""The tables on several PostgreSQL servers, by Citus: segments by their recording, all that they refer to everywhere.

Citus' rules, to which the schema and every statement keep (tests/indexer/test_distribution.py): the distribution column
is in each key of a distributed table and is never updated; foreign keys lead from distributed tables to reference
tables, not back; distributed tables are joined with reference tables, or by that column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, text

from indexer.database import translated

DISTRIBUTED = {"segment": "recording_id"}  # tables that grow with the hours, and the column that says on which server
REFERENCE = ("tokenizer", "archive", "codebook", "recording")  # on every server: what segments refer to, in this order
LOCAL = ("api_key", "job", "watch", "watch_hit", "delivery")  # with the coordinator, which all connections go to
_LOCK = 7_295_318  # any fixed number: two processes do not distribute at once


class CitusMissing(Exception):
    """The database has no Citus."""

    code = "citus_missing"


class CitusConflict(Exception):
    """Some of the tables are distributed already, and in another way."""

    code = "citus_conflict"


@dataclass(frozen=True)
class Placed:
    """How a table lies in a cluster: distributed (by a column), reference or local."""

    kind: str
    column: str | None = None


def wanted() -> dict[str, Placed]:
    """How tables are to lie, in the order in which they are placed."""
    return {name: Placed("reference") for name in REFERENCE} | {
        name: Placed("distributed", column) for name, column in DISTRIBUTED.items()
    }


def lacking(found: Mapping[str, Placed]) -> list[str]:
    """Which tables are still to be placed, in order. Raises CitusConflict where one lies otherwise than it ought to."""
    for name, place in found.items():
        if name in wanted() and place != wanted()[name] and place.kind != "local":
            by = "" if place.column is None else f" by {place.column}"
            raise CitusConflict(f"the table {name} is a {place.kind} table{by} already: undistribute it first")
        if name in LOCAL and place.kind != "local":
            raise CitusConflict(f"the table {name} is a {place.kind} table, and has to be a local one")
    return [name for name, place in wanted().items() if found.get(name) != place]


def distribute(engine: Engine) -> list[str]:
    """Place the tables, in one transaction: which were placed now; none where all were already.

    Raises CitusMissing, CitusConflict, DatabaseError.
    """
    with translated(), engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        if not connection.execute(text("SELECT count(*) FROM pg_extension WHERE extname = 'citus'")).scalar_one():
            raise CitusMissing(
                "the database has no Citus: install it on every server, and CREATE EXTENSION citus on the coordinator"
            )
        names = lacking(_found(connection))
        if names:
            # One kind of table may not refer to another while they are placed one after another.
            keys = drop_foreign_keys(connection)
            for name in names:
                _place(connection, name)
            add_foreign_keys(connection, keys)
        return names


def _found(connection: Connection) -> dict[str, Placed]:
    rows = connection.execute(
        text("SELECT CAST(table_name AS text), citus_table_type, distribution_column FROM citus_tables")
    )
    return {
        name: Placed(kind, column if kind == "distributed" else None)
        for name, kind, column in rows
    }  # fmt: skip


def _place(connection: Connection, name: str) -> None:
    column = DISTRIBUTED.get(name)
    if column is None:
        connection.execute(text("SELECT create_reference_table(CAST(:name AS regclass))"), {"name": name})
        return
    connection.execute(
        text("SELECT create_distributed_table(CAST(:name AS regclass), :column, colocate_with => 'none')"),
        {"name": name, "column": column},
    )
    # Its rows are on the servers by now; what is left of them here is seen by nobody.
    connection.execute(
        text("SELECT truncate_local_data_after_distributing_table(CAST(:name AS regclass))"), {"name": name}
    )


@dataclass(frozen=True)
class ForeignKey:
    """A foreign key of ours: of which table, its name, and what it says."""

    table: str
    name: str
    definition: str


def foreign_keys(connection: Connection) -> list[ForeignKey]:
    """All between our tables."""
    rows = connection.execute(
        text("""
            SELECT relname, conname, pg_get_constraintdef(pg_constraint.oid) FROM pg_constraint
            JOIN pg_class ON pg_class.oid = conrelid JOIN pg_namespace ON pg_namespace.oid = pg_class.relnamespace
            WHERE contype = 'f' AND conparentid = 0 AND nspname = current_schema() AND relname = ANY(:tables)
            ORDER BY relname, conname
        """),
        {"tables": [*REFERENCE, *DISTRIBUTED, *LOCAL]},
    )
    return [ForeignKey(*row) for row in rows]


def drop_foreign_keys(connection: Connection) -> list[ForeignKey]:
    """Drop them; what was dropped."""
    keys = foreign_keys(connection)
    for key in keys:
        connection.execute(text(f'ALTER TABLE {key.table} DROP CONSTRAINT "{key.name}"'))
    return keys


def add_foreign_keys(connection: Connection, keys: Sequence[ForeignKey]) -> None:
    """Add them again, those among tables that lie everywhere first: what refers to them comes along with them."""
    for key in sorted(keys, key=lambda key: (key.table not in REFERENCE, key.table in LOCAL, key.name)):
        connection.execute(text(f'ALTER TABLE {key.table} ADD CONSTRAINT "{key.name}" {key.definition}'))
