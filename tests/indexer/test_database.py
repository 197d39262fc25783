import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError

from indexer import database
from indexer.database import DatabaseError, SchemaOutdated
from indexer.schema import Base


@pytest.fixture
def quiet_port() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_migrations_make_exactly_the_tables_of_the_schema(empty_engine: Engine) -> None:
    database.migrate(empty_engine)
    database.migrate(empty_engine)
    database.check(empty_engine)
    with empty_engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_processes_that_migrate_at_once_take_turns(empty_engine: Engine) -> None:
    failures: list[BaseException] = []

    def run() -> None:
        try:
            database.migrate(empty_engine)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    database.check(empty_engine)


def test_an_empty_schema_is_outdated(empty_engine: Engine) -> None:
    with pytest.raises(SchemaOutdated, match="run `sayagain migrate`") as caught:
        database.check(empty_engine)
    assert caught.value.code == "schema_outdated"
    with pytest.raises(SchemaOutdated), database.connect(empty_engine) as connection:
        connection.execute(text("SELECT * FROM archive"))


def test_a_schema_from_the_future_is_left_alone(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaOutdated):
        database.check(engine)
    with pytest.raises(SchemaOutdated):
        database.migrate(engine)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_urls_are_normalised(tmp_path: Path, scheme: str) -> None:
    engine = database.open_engine(tmp_path, f"{scheme}://me:secret@db.example:5433/sounds")
    assert engine.url.drivername == "postgresql+psycopg"
    assert (engine.url.username, engine.url.host, engine.url.port, engine.url.database) == (
        "me", "db.example", 5433, "sounds",
    )  # fmt: skip


@pytest.mark.parametrize("url", ["", "nonsense", "mysql://host/name", "sqlite:///x.db", "postgresql://h:port/x"])
def test_other_urls_are_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(DatabaseError, match="database URL"):
        database.open_engine(tmp_path, url)


def test_a_database_that_is_down(tmp_path: Path, closed_port: int) -> None:
    engine = database.open_engine(tmp_path, f"postgresql://me:secret@127.0.0.1:{closed_port}/x")
    for act in (database.migrate, database.check):
        with pytest.raises(DatabaseError) as caught:
            act(engine)
        assert caught.value.code == "database_unavailable"
        assert "\n" not in str(caught.value)
        assert "secret" not in str(caught.value)


def test_a_database_that_does_not_answer(tmp_path: Path, quiet_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "CONNECT_TIMEOUT_S", 2)
    engine = database.open_engine(tmp_path, f"postgresql://me@127.0.0.1:{quiet_port}/x")
    started = time.perf_counter()
    with pytest.raises(DatabaseError), database.connect(engine):
        pass
    assert time.perf_counter() - started < 10.0


def test_a_connection_that_is_cut_while_in_use(engine: Engine) -> None:
    with pytest.raises(DatabaseError) as caught, database.connect(engine) as connection:
        connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
    assert caught.value.code == "database_unavailable"
    with database.connect(engine) as connection:  # and again on a fresh connection
        assert connection.execute(text("SELECT 1")).scalar_one() == 1


def test_translate_leaves_other_errors_alone() -> None:
    error = ValueError("no")
    assert database.translate(error) is error
    known = database.translate(OperationalError("SELECT 1", {}, psycopg.OperationalError("gone\nDETAIL: all of it")))
    assert isinstance(known, DatabaseError)
    assert str(known) == "PostgreSQL does not answer: gone"
