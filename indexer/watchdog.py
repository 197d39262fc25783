"""A watchdog: ends the process when what it is at gives nothing for too long."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from indexer.messages import STALLED

TOLD = 0.25  # of the time in which something must come, a worker says that it does


class Watchdog:
    """Ends the process when a file gives nothing for too long: a decoder that hangs listens to nobody.

    A context manager around a task; `fed` says that something has come, and every now and then passes it on to `tell`.
    """

    def __init__(self, stall_s: float, tell: Callable[[], None] = lambda: None) -> None:
        self._stall_s = stall_s
        self._tell = tell
        self._told = time.monotonic()
        self._until: float | None = None
        self._changed = threading.Condition()
        threading.Thread(target=self._watch, daemon=True).start()

    def fed(self) -> None:
        """Something has come: the time begins anew."""
        with self._changed:
            now = time.monotonic()
            self._until = now + self._stall_s
            self._changed.notify()
        if now - self._told >= self._stall_s * TOLD:
            self._told = now
            self._tell()

    def __enter__(self) -> None:
        self.fed()

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._until = None

    def _watch(self) -> None:
        with self._changed:
            while True:
                left_s = None if self._until is None else self._until - time.monotonic()
                if left_s is not None and left_s <= 0.0:
                    os._exit(STALLED)
                self._changed.wait(left_s)
