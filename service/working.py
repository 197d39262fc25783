"""`sayagain work`: jobs, watches and webhooks in a process of their own."""

from __future__ import annotations

import signal
import threading

from service.console import failing
from service.settings import Settings


def work() -> None:
    """Do the jobs and watches that a service leaves to others (SAYAGAIN_RUN_JOBS=false), until it is stopped."""
    from service import logs
    from service.deps import Backend
    from service.jobs.runner import Runner

    with failing():
        settings = Settings()
        logs.configure(settings)
        ended = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: ended.set())
        backend = Backend.open(settings)
        try:
            with Runner(backend):
                ended.wait()
        finally:
            backend.close()
