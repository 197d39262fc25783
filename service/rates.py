"""How often a key is used: a sliding minute, counted in the process.

Several processes that serve the same keys count each for itself: a key may then be used as often in each of them.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from service.errors import TooManyRequests
from service.keys import KeyInfo

MINUTE_S = 60.0


class RateLimits:
    """Requests of each key in the last minute, as far as this process has seen them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds that only rise."""
        self._clock = clock
        self._times: dict[int, deque[float]] = {}
        self._lock = threading.Lock()

    def count(self, key: KeyInfo) -> None:
        """One request more. Raises TooManyRequests, with the seconds after which one is free again."""
        if key.per_minute is None:
            return
        now = self._clock()
        with self._lock:
            times = self._times.setdefault(key.id, deque())
            while times and times[0] <= now - MINUTE_S:
                times.popleft()
            if len(times) >= key.per_minute:
                wait_s = times[0] + MINUTE_S - now
                raise TooManyRequests(f"the key {key.name!r} allows {key.per_minute} requests a minute", wait_s)
            times.append(now)
