"""The database: an engine, its schema brought up to date, and one clear error where it cannot be had."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from indexer import embedded

CONNECT_TIMEOUT_S = 5
POOL_SIZE, POOL_OVERFLOW = 20, 10  # connections kept, and more at need: as many as threads of the service at once
LEAST_VERSION = 15  # of PostgreSQL
# Over a network: after a minute of silence, and 30 s without an answer, the other machine is taken for dead.
KEEP_ALIVE = {"keepalives_idle": 60, "keepalives_interval": 10, "keepalives_count": 3}
_MIGRATE_LOCK = 7_295_316  # any fixed number: two processes do not migrate at once


class DatabaseError(Exception):
    """PostgreSQL does not answer, or not as it should.

    DatabaseError       down, refuses, or breaks off
    └── SchemaOutdated  it answers, but its tables are not those that this version needs
    """

    code = "database_unavailable"


class SchemaOutdated(DatabaseError):
    """Another version's tables, or none."""

    code = "schema_outdated"


def open_engine(home: Path, url: str | None) -> sa.Engine:
    """An engine for `url`, or for the embedded PostgreSQL under `home` where that is None (started if need be).

    An external server is first spoken to when it is first used. Raises DatabaseError.
    """
    if url is None:
        try:
            url = embedded.join(home)
        except embedded.EmbeddedError as error:
            raise DatabaseError(str(error)) from error
    try:
        parsed = sa.make_url(url)
    except (ArgumentError, ValueError) as error:
        raise DatabaseError("the database URL cannot be read: postgresql://user:password@host:port/name") from error
    if parsed.drivername not in ("postgres", "postgresql", "postgresql+psycopg"):
        raise DatabaseError(f"the database URL begins with {parsed.drivername}: only postgresql:// is served")
    engine = sa.create_engine(
        parsed.set(drivername="postgresql+psycopg"),
        pool_pre_ping=True,
        pool_size=POOL_SIZE,
        max_overflow=POOL_OVERFLOW,
        pool_timeout=CONNECT_TIMEOUT_S,
        connect_args={"connect_timeout": CONNECT_TIMEOUT_S, "application_name": "sayagain", **KEEP_ALIVE},
    )
    sa.event.listen(engine, "connect", _keep_alive)
    return engine


def _keep_alive(connection: psycopg.Connection[tuple[object, ...]], _: object) -> None:
    """The server's side too: locks of a machine that is cut off, or dead, go in minutes, and not in two hours."""
    settings = ", ".join(f"set_config('tcp_{name}', '{value}', false)" for name, value in KEEP_ALIVE.items())
    connection.execute(f"SELECT {settings}".encode())
    connection.commit()


@contextmanager
def connect(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A connection whose failures are DatabaseError; what was not committed is rolled back."""
    with translated(), engine.connect() as connection:
        yield connection


@contextmanager
def translated() -> Iterator[None]:
    """Turns the driver's errors into DatabaseError."""
    try:
        yield
    except (sa.exc.SQLAlchemyError, psycopg.Error) as error:
        known = translate(error)
        if known is error:
            raise
        raise known from error


def translate(error: BaseException) -> BaseException:
    """The DatabaseError that stands for `error`, or `error` itself where it is none of the database's."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    line = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
    if isinstance(error, PoolTimeout):
        return DatabaseError("PostgreSQL is busy: no connection became free in time")
    if isinstance(cause, psycopg.errors.UndefinedTable | psycopg.errors.UndefinedColumn):
        return SchemaOutdated(f"the database lacks tables that this version needs: run `sayagain migrate` ({line})")
    if isinstance(error, OperationalError | InterfaceError) or isinstance(cause, psycopg.OperationalError):
        return DatabaseError(f"PostgreSQL does not answer: {line}")
    return error


def migrate(engine: sa.Engine) -> None:
    """Bring the schema up to date. Raises DatabaseError, SchemaOutdated where a newer version has been at it."""
    with translated(), engine.begin() as connection:
        version = int((connection.dialect.server_version_info or (0,))[0])
        if version < LEAST_VERSION:
            raise DatabaseError(f"PostgreSQL {version} is too old: {LEAST_VERSION} or later is needed")
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATE_LOCK})
        config = _config()
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise SchemaOutdated(f"the database's schema is not one that this version knows: {error}") from error


def check(engine: sa.Engine) -> None:
    """Raises DatabaseError where PostgreSQL does not answer, SchemaOutdated where its schema is not the current one."""
    with connect(engine) as connection:
        found = MigrationContext.configure(connection).get_current_revision()
    needed = ScriptDirectory.from_config(_config()).get_current_head()
    if found != needed:
        raise SchemaOutdated(f"the database's schema is {found or 'empty'}, {needed} is needed: run `sayagain migrate`")


def _config() -> Config:
    import migrations

    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__path__[0])).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
