"""A read replica: searches, lists and sounds ask it as long as it answers; what it lacks of the primary is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, Engine, NullPool, create_engine, text

from indexer import database
from indexer.database import DatabaseError

CONNECT_S = 2  # in which the replica has to take a connection
AGAIN_S = 5.0  # after a failure all reads go to the primary for so long
CATCH_UP_S = 0.2  # in which a replica that keeps up has replayed what the primary had written
POLL_S = 0.02


@dataclass(frozen=True)
class ReplicaSeen:
    """How far a replica is behind, in seconds and in bytes of the log (None: the primary cannot be asked), or why not.

    Seconds are those since the last change that it has replayed was made, or since it started; 0 where it has all.
    """

    lag_s: float = 0.0
    lag_bytes: int | None = None
    problem: str | None = None


def open_replica(home: Path, url: str) -> Engine:
    """An engine that never writes. Raises DatabaseError."""
    found = database.open_engine(home, url)
    return create_engine(
        found.url,
        pool_pre_ping=True,
        pool_size=database.POOL_SIZE,
        max_overflow=database.POOL_OVERFLOW,
        pool_timeout=database.CONNECT_TIMEOUT_S,
        connect_args={
            "connect_timeout": CONNECT_S,
            "application_name": "sayagain reads",
            "options": "-c default_transaction_read_only=on",
        },
    )


class Readers:
    """Where reads go; threads may share one."""

    def __init__(self, primary: Engine, replica: Engine | None = None) -> None:
        self.primary, self.replica = primary, replica
        self._lock = threading.Lock()
        self._not_before = 0.0

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        """A connection for reading: to the replica, where that cannot be had to the primary. Raises DatabaseError."""
        with ExitStack() as leaving:
            connection = self._of_replica(leaving)
            if connection is None:
                connection = leaving.enter_context(database.connect(self.primary))
            yield connection

    def _of_replica(self, leaving: ExitStack) -> Connection | None:
        if self.replica is None or time.monotonic() < self._not_before:
            return None
        try:
            return leaving.enter_context(database.connect(self.replica))
        except DatabaseError:
            with self._lock:
                self._not_before = time.monotonic() + AGAIN_S
            return None

    def close(self) -> None:
        """Give the replica's connections back."""
        if self.replica is not None:
            self.replica.dispose()


class ReplicaLook:
    """Looks at how far a replica is behind, by connections of its own."""

    def __init__(self, primary: Engine, replica: Engine) -> None:
        self._primary, self._replica = (
            create_engine(
                engine.url, poolclass=NullPool, isolation_level="AUTOCOMMIT",
                connect_args={"connect_timeout": CONNECT_S, "application_name": "sayagain look"},
            )
            for engine in (primary, replica)
        )  # fmt: skip

    def __call__(self) -> ReplicaSeen:
        """What is seen now."""
        written = self._written()
        try:
            with database.connect(self._replica) as connection:
                if not connection.execute(text("SELECT pg_is_in_recovery()")).scalar_one():
                    return ReplicaSeen(problem="it is no replica: it takes writes of its own")
                until = time.monotonic() + CATCH_UP_S
                while True:
                    row = connection.execute(_LAG, {"written": written}).one()
                    if row.bytes is None or row.bytes <= 0 or time.monotonic() >= until:
                        break
                    time.sleep(POLL_S)
        except DatabaseError as error:
            return ReplicaSeen(problem=str(error))
        if row.bytes is not None and row.bytes <= 0:
            return ReplicaSeen(0.0, 0)
        return ReplicaSeen(float(row.age_s), row.bytes)

    def _written(self) -> str | None:
        """How far the primary has written, None where it does not say."""
        try:
            with database.connect(self._primary) as connection:
                return str(connection.execute(text("SELECT CAST(pg_current_wal_lsn() AS text)")).scalar_one())
        except DatabaseError:
            return None


_LAG = text("""
    SELECT CAST(pg_wal_lsn_diff(CAST(:written AS pg_lsn), pg_last_wal_replay_lsn()) AS bigint) AS bytes,
        greatest(0, extract(epoch FROM clock_timestamp()
            - coalesce(pg_last_xact_replay_timestamp(), pg_postmaster_start_time()))) AS age_s
""")
