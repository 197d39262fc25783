"""What a service depends on: the database and the data folder, looked at without ever waiting long for either."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from sqlalchemy import Engine, NullPool, create_engine

from indexer import database, overview
from indexer.database import DatabaseError
from indexer.overview import Overview
from service.errors import message_of
from service.registry import Registry
from service.replica import ReplicaLook, ReplicaSeen

LOOK_S = 0.8  # that an answer waits for a look; with all else it is there within a second
QUERY_S = 5.0  # after which the database breaks a query off by itself
CONNECT_S = 5
POLL_S = 0.01
MOST_ARCHIVES = 1_000

T = TypeVar("T")


class Look(Generic[T]):
    """Looks at something that may hang, in a thread of its own: whoever asks has an answer in time.

    One look is under way at a time; who asks while it is waits for the same one.
    """

    def __init__(self, look: Callable[[], T]) -> None:
        self._look = look
        self._lock = threading.Lock()
        self._under_way: Future[T] | None = None

    async def within(self, seconds: float) -> T | None:
        """What is seen now; None where that takes longer. Raises what the look raises."""
        with self._lock:
            seen = self._under_way
            if seen is None or seen.done():
                seen = self._under_way = Future()
                # A daemon: a look that hangs for ever keeps no process from its end.
                threading.Thread(target=self._run, args=(seen,), name="sayagain-look", daemon=True).start()
        deadline = time.monotonic() + seconds
        while not seen.done():
            if time.monotonic() >= deadline:
                return None
            await asyncio.sleep(POLL_S)
        return seen.result()

    def _run(self, seen: Future[T]) -> None:
        try:
            seen.set_result(self._look())
        except BaseException as error:
            seen.set_exception(error)


@dataclass(frozen=True)
class DatabaseSeen:
    """What is in the database, or why that cannot be told; `missing` names archives without their tokenizer."""

    overview: Overview | None
    problem: DatabaseError | None = None
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class FolderSeen:
    """The data folder: bytes that are free, or why nothing can be written there."""

    free_bytes: int
    problem: str | None = None


class Surroundings:
    """The database and the data folder of a service."""

    def __init__(self, engine: Engine, home: Path, registry: Registry, replica: Engine | None = None) -> None:
        self._home, self._registry = home, registry
        # Connections of its own: where requests hold all the others, the database is not down.
        self._engine = create_engine(
            engine.url,
            poolclass=NullPool,
            connect_args={"connect_timeout": CONNECT_S, "application_name": "sayagain look"},
        )
        self.database = Look(self._look_at_database)
        self.folder = Look(self._look_at_folder)
        self.replica = None if replica is None else Look[ReplicaSeen](ReplicaLook(engine, replica))

    def _look_at_database(self) -> DatabaseSeen:
        try:
            database.check(self._engine)
            with database.connect(self._engine) as connection:
                found = overview.look(connection, MOST_ARCHIVES, QUERY_S)
        except DatabaseError as error:
            return DatabaseSeen(None, error)
        missing = tuple(a.name for a in found.archives if not self._registry.has(a.tokenizer_sha256))
        return DatabaseSeen(found, missing=missing)

    def _look_at_folder(self) -> FolderSeen:
        try:
            free_bytes = shutil.disk_usage(self._home).free
        except OSError as error:
            return FolderSeen(0, _reason(error))
        try:
            with tempfile.TemporaryFile(dir=self._home) as file:
                file.write(b"x")
        except OSError as error:
            return FolderSeen(free_bytes, _reason(error))
        return FolderSeen(free_bytes)


def _reason(error: OSError) -> str:
    return error.strerror or message_of(error)
