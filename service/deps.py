"""What routes need, made once where the application starts and handed to them by FastAPI."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Path, Request
from sqlalchemy import Connection, Engine

from indexer import database, store
from indexer.recordings import RecordingInfo, recordings_by_id
from service.decoding import Decoders
from service.rates import RateLimits
from service.registry import Registry
from service.replica import Readers, open_replica
from service.schemas import MAX_ID
from service.search.answer import Answer
from service.search.cascade import SearchSettings
from service.search.engine import SearchEngine
from service.search.localindex import FOLDER
from service.settings import Settings
from service.surroundings import Surroundings


def open_database(settings: Settings) -> Engine:
    """The database, with a current schema: the embedded one is brought up to date, another is only checked.

    Raises DatabaseError.
    """
    engine = database.open_engine(settings.home_path, settings.url)
    if settings.url is None:
        database.migrate(engine)
    else:
        database.check(engine)
    return engine


@dataclass
class Backend:
    """The long-lived parts of a running service."""

    settings: Settings
    database: Engine
    surroundings: Surroundings
    search: SearchEngine
    decoders: Decoders
    readers: Readers
    rates: RateLimits = field(default_factory=RateLimits)

    @classmethod
    def open(cls, settings: Settings, observe: Callable[[Answer], None] | None = None) -> Backend:
        """Open the database and load the tokenizer. Raises DatabaseError or TokenizerError.

        `observe` is told of each answer to a search.
        """
        registry = Registry(settings.home_path, settings.tokenizer, threads=settings.threads, device=settings.device)
        engine = open_database(settings)
        decoders = Decoders(settings.decoders, settings.decoder_memory_mb, settings.decoder_timeout_s)
        search = SearchEngine(
            engine,
            registry.default,
            SearchSettings(
                settings.candidate_depth,
                settings.rescore_depth,
                settings.max_query_s,
                settings.deep_hits,
                settings.deep_budget_s,
            ),
            registry.find,
            settings.home_path / FOLDER,
            lambda: registry.named(settings.deep_tokenizer),
            decoders.read_between,
        )
        replica = settings.replica_url
        home = settings.home_path
        readers = Readers(engine, None if replica is None else open_replica(home, replica.get_secret_value()))
        search.connect = readers.connect
        search.observe = observe
        search.index.clear_unused()
        surroundings = Surroundings(engine, settings.home_path, registry, readers.replica)
        return cls(settings, engine, surroundings, search, decoders, readers)

    def connect(self) -> AbstractContextManager[Connection]:
        """A connection whose failures are DatabaseError.

        Hold it in one thread and no longer than it is needed: a request that holds one while it waits for a thread
        starves those that have a thread and wait for a connection.
        """
        return database.connect(self.database)

    def reading(self) -> AbstractContextManager[Connection]:
        """A connection like that for reading what may be a moment old: to the replica where there is one."""
        return self.readers.connect()

    def close(self) -> None:
        """Give the database's connections back, and end the decoder processes."""
        self.decoders.close()
        self.readers.close()
        self.database.dispose()


async def _backend(request: Request) -> Backend:  # async: nothing to wait for a thread for
    backend: Backend = request.app.state.backend
    return backend


BackendDep = Annotated[Backend, Depends(_backend)]


def _recording(
    request: Request, backend: BackendDep, recording: Annotated[int, Path(ge=0, le=MAX_ID)]
) -> RecordingInfo:
    """The recording of a path; no connection is held while its sound is sent."""
    with backend.reading() if request.method in ("GET", "HEAD") else backend.connect() as connection:
        found = recordings_by_id(connection, [recording]).get(recording)
    if found is None:
        raise store.RecordingNotFound(f"there is no recording {recording}")
    return found


RecordingDep = Annotated[RecordingInfo, Depends(_recording)]
