"""Does what waits in the database: jobs, watches, and what their webhooks are to be told; threads of one process.

Any number of processes may run at once, on any number of machines: each takes what nobody else holds.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

from sqlalchemy import Connection

from indexer import database
from service.deps import Backend
from service.jobs import indexing, queue, uploads
from service.watches import webhooks
from service.watches.patrol import Patrol

POLL_S = 0.5  # between two looks at the database where nothing is to be done
TROUBLE_S = 5.0  # the same after the database did not answer
SWEEP_S = 3_600.0  # between two looks for files that nothing refers to

log = logging.getLogger(__name__)


class Runner:
    """A thread for jobs, one for watches, one for webhooks. A context manager: they are gone when it is left."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._stop = threading.Event()
        self._swept_at = -SWEEP_S
        turns = {"jobs": self._job, "watches": Patrol(backend).turn, "webhooks": self._webhook}
        self._threads = [
            threading.Thread(target=self._run, args=(turn,), name=f"sayagain-{name}") for name, turn in turns.items()
        ]

    def __enter__(self) -> Runner:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop: what is being indexed is put off to the next start, and nothing that is stored is lost."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, turn: Callable[[Connection], bool]) -> None:
        """One turn after another, on a connection of the thread's own; a fault ends neither it nor the others."""
        while not self._stop.is_set():
            try:
                with ExitStack() as leaving:
                    connection = leaving.enter_context(database.connect(self._backend.database))
                    connection.detach()  # closed at the end, not lent to others: locks go with it
                    while not self._stop.is_set():
                        if not turn(connection):
                            self._stop.wait(POLL_S)
            except Exception as error:
                if isinstance(error, database.DatabaseError):
                    log.warning("%s; another try in %g s", error, TROUBLE_S)
                else:
                    log.exception("a turn has failed; the next in %g s", TROUBLE_S)
                self._stop.wait(TROUBLE_S)

    def _job(self, connection: Connection) -> bool:
        """Do a job, if there is one."""
        if time.monotonic() - self._swept_at >= SWEEP_S:
            self._swept_at = time.monotonic()
            with connection.begin():
                uploads.sweep(self._backend.settings.home_path, connection)
                queue.forget(connection)
        job = queue.take(connection)
        if job is None:
            return False
        indexing.do(job, connection, self._backend, self._stop)
        with connection.begin():
            queue.release(connection, job.id)
        return True

    def _webhook(self, connection: Connection) -> bool:
        """Post one delivery, if one is due."""
        return webhooks.deliver(connection, private=self._backend.settings.webhook_private)
