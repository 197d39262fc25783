"""A thread that listens to a source, and again whenever that is lost, for ever."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from indexer.live.decoding import SourceLost, Stopped
from indexer.live.recorder import Recorder
from indexer.live.sound import Place
from indexer.live.source import Source

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0  # before a source that was lost is tried again; each time twice as long
STEADY_SAMPLES = 160_000  # 10 s: a source that gave so much is tried again at once

log = logging.getLogger(__name__)


class Receiver(threading.Thread):
    """Takes what comes from a source to the recorder; `over` is called when nothing more will come.

    That is when it is stopped, when the source has ended and was to be heard `once`, or when what came could not be
    kept: then `problem` says why.
    """

    def __init__(
        self, source: Source, recorder: Recorder, heard: Place | None, over: Callable[[], None], *, once: bool
    ) -> None:
        super().__init__(name=f"sayagain-live-{source.label}", daemon=True)  # what cannot be interrupted is left
        self._source, self._recorder, self._heard, self._over, self._once = source, recorder, heard, over, once
        self._told_to_stop = threading.Event()
        self.problem: Exception | None = None

    def stop(self, wait_s: float) -> None:
        """Listen no more; what has come is kept."""
        self._told_to_stop.set()
        self._source.interrupt()
        self.join(wait_s)

    def run(self) -> None:
        """Listen."""
        wait_s = FIRST_WAIT_S
        try:
            while not self._told_to_stop.is_set():
                samples, problem = self._heard_once()
                self._recorder.gap()
                if self._once:
                    self.problem = problem if not samples else None
                    break
                wait_s = FIRST_WAIT_S if samples >= STEADY_SAMPLES else wait_s
                if problem is not None or not samples:
                    log.warning("%s: %s; another try in %g s", self._source.label, problem or "it has ended", wait_s)
                    self._told_to_stop.wait(wait_s)
                    wait_s = min(2.0 * wait_s, LONGEST_WAIT_S)
        except Stopped:
            pass
        except Exception as error:  # no room on the disk, say
            self.problem = error
        finally:
            self._over()

    def _heard_once(self) -> tuple[int, SourceLost | None]:
        """Listen until the source is lost; how many samples came, and what was wrong. Raises Stopped, NotKept."""
        samples = 0
        try:
            for block, place in self._source.listen(self._told_to_stop, self._heard):
                if not samples:
                    log.info("%s: listening", self._source.label)
                if not self._recorder.take(block, place):
                    raise Stopped
                samples += len(block)
                self._heard = self._recorder.place
        except SourceLost as error:
            return samples, error
        return samples, None
