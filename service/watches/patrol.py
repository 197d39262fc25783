"""Searches by watches: each recording that comes, or comes anew, is searched once by each watch of its archive."""

from __future__ import annotations

import logging
import time

from sqlalchemy import Connection, text

from indexer import store
from indexer.recordings import recordings_since
from service.deps import Backend
from service.errors import SayagainError, code_of, message_of
from service.search.answer import Hit, Request
from service.watches import schemas, watches
from service.watches.watches import WatchInfo

MOST_HITS = 1_000  # of one watch in the recordings of one turn
STILL = 0.5  # of a watch's score: with as much, a place that it has found is still there
TROUBLE_S = 60.0  # until a watch that could not search tries again

log = logging.getLogger(__name__)


class Patrol:
    """Searches for one watch after another; one that cannot search keeps none of the others waiting."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._later: dict[int, float] = {}  # watches that could not search, and when they are to try again

    def turn(self, connection: Connection) -> bool:
        """Search for the watch that is farthest behind what is new to it; False where nothing is new to any.

        Hits, the message to the webhook and how far the watch has seen change in one transaction: a process that dies
        has found nothing yet, and another does it again.
        """
        now = time.monotonic()
        self._later = {watch: due for watch, due in self._later.items() if due > now}
        with connection.begin():
            row = connection.execute(
                text("""
                    SELECT watch.id, archive.revision FROM watch JOIN archive ON archive.id = watch.archive_id
                    WHERE archive.revision > watch.seen_revision AND NOT watch.id = ANY(:later)
                    ORDER BY watch.seen_revision - archive.revision, watch.id LIMIT 1 FOR UPDATE OF watch SKIP LOCKED
                """),
                {"later": list(self._later)},
            ).one_or_none()
            if row is None:
                return False
            watch = watches.get(connection, row.id)
            fresh = recordings_since(connection, watch.archive_id, watch.seen_revision, row.revision)
            try:
                hits = self._found(connection, watch, frozenset(fresh)) if fresh else []
            except (store.StoreError, SayagainError) as error:  # its archive's tokenizer is not at hand, say
                log.warning("the watch %r cannot search: %s: %s", watch.name, code_of(error), message_of(error))
                self._later[watch.id] = now + TROUBLE_S
                return True
            new = watches.put_hits(connection, watch, fresh, row.revision, hits)
            if new and watch.webhook is not None:
                body = schemas.message_of(watch, new).model_dump_json().encode()
                watches.add_delivery(connection, watch.id, body)
            watches.has_seen(connection, watch.id, row.revision)
        return True

    def _found(self, connection: Connection, watch: WatchInfo, fresh: frozenset[int]) -> list[Hit]:
        examples = watches.examples_of(connection, watch.id)
        request = Request(examples, watch.archive, MOST_HITS, STILL * watch.min_score, only=fresh)
        return self._backend.search.search(request, self._backend.connect).hits  # a replica may not have it yet
