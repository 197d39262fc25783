"""One run of indexing in a process of its own, which tells where it is and can be ended in any way.

The process is forked off a server that has imported everything: a run begins at once.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import resource
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from tests.faults.errors import Difference

# A run sets its own limits; the rest is what the command `index` does.
RUN_S = 120.0  # after that a run hangs
_METHOD = multiprocessing.get_context("forkserver")
_METHOD.set_forkserver_preload(["indexer.pipeline", "service.errors", "service.search.localindex", __name__])
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Order:
    """What to index and where; `url` None is the embedded server of `home`. `limits` are fields of messages.Setup."""

    home: Path
    audio: Path
    archive: str
    tokenizer: Path
    url: str | None = None
    codebook: str | None = "tokenizer"
    workers: int = 1
    limits: dict[str, float] = field(default_factory=dict)
    file_bytes: int | None = None  # longest file that may be written
    prepare: bool = False  # the local index too, as the command does
    log: Path = Path(os.devnull)


@dataclass(frozen=True)
class Outcome:
    """How a run ended: with a report, with an error of ours, or with neither: then it was killed."""

    report: dict[str, Any] | None = None
    code: str | None = None
    message: str = ""

    @property
    def failed(self) -> dict[str, str]:
        """Codes of files that could not be indexed, by name."""
        return {failure["name"]: failure["code"] for failure in (self.report or {"failed": []})["failed"]}


class Run:
    """A run that is under way. A context manager: it is over, and its workers gone, when that is left."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.stage = ""
        self.stages: list[str] = []
        self._outcome: Outcome | None = None
        _serve()
        self._told, theirs = _METHOD.Pipe(duplex=False)
        self._process = _METHOD.Process(target=_index, args=(order, theirs), daemon=True)
        self._process.start()
        theirs.close()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def workers(self) -> list[psutil.Process]:
        """Its worker processes."""
        with contextlib.suppress(psutil.Error):
            return [child for child in psutil.Process(self.pid).children() if _is_worker(child)]
        return []

    def going(self, seconds: float = 0.0) -> bool:
        """Whether it still goes on, after so many seconds in which it is listened to."""
        until = time.monotonic() + seconds
        while self._outcome is None:
            left_s = until - time.monotonic()
            if not self._told.poll(max(0.0, left_s)):
                return True
            try:
                kind, value = self._told.recv()
            except (EOFError, OSError):
                self._outcome = Outcome()
                break
            if kind == "stage":
                self.stage = value
                self.stages.append(value)
            elif kind == "trace":
                raise Difference(f"a run ends with a trace:\n{value}")
            else:
                self._outcome = value
            if left_s <= 0.0:
                return self._outcome is None
        return False

    def until(self, true: Callable[[], bool]) -> bool:
        """Wait until something is true, or the run is over; whether it goes on."""
        deadline = time.monotonic() + RUN_S
        while self.going(0.005):
            if true():
                return True
            self._in_time(deadline)
        return False

    def outcome(self) -> Outcome:
        """How it ended, when it has. Raises Difference where it hangs or leaves a trace."""
        deadline = time.monotonic() + RUN_S
        while self.going(0.5):
            self._in_time(deadline)
        self._process.join(RUN_S)
        assert self._outcome is not None
        return self._outcome

    def kill(self) -> None:
        """kill -9. Raises Difference where workers stay behind."""
        workers = self.workers()
        self._process.kill()
        self._process.join(RUN_S)
        if psutil.wait_procs(workers, timeout=20)[1]:
            for worker in workers:
                with contextlib.suppress(psutil.Error):
                    worker.kill()
            raise Difference("workers stay behind when their coordinator is killed")

    def _in_time(self, deadline: float) -> None:
        if time.monotonic() > deadline:
            raise Difference(f"a run hangs for {RUN_S:.0f} s ({self.stage or 'at its start'})")


def _serve() -> None:
    """Start the server of processes, which has one thread: others spin where there are more of them than cores."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "indexer.worker" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def _index(order: Order, told: Connection) -> None:
    """In the process: index, and tell."""
    from indexer import database, embedded, messages, pipeline
    from service.errors import INTERNAL, code_of, message_of
    from service.search import localindex

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with order.log.open("ab") as log:
        os.dup2(log.fileno(), 2)
    if order.file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order.file_bytes, order.file_bytes))
    assert pipeline.Setup is messages.Setup  # that whose limits are set here
    pipeline.Setup = functools.partial(messages.Setup, **order.limits)  # type: ignore[misc, assignment]
    try:
        engine = database.open_engine(order.home, order.url)
        database.migrate(engine)
        report = pipeline.index_archive(
            engine, [order.audio], order.archive, order.tokenizer,
            workers=order.workers, codebook=order.codebook, codes=False,  # type: ignore[arg-type]
            progress=lambda now: told.send(("stage", now.stage)),
        )  # fmt: skip
        if order.prepare:
            with database.connect(engine) as connection:
                localindex.prepare(localindex.LocalIndex(order.home / localindex.FOLDER), connection, order.archive)
        engine.dispose()
        outcome = Outcome(report.as_json())
    except Exception as raw:
        error = database.translate(raw)
        code = code_of(error)
        if code == INTERNAL:
            told.send(("trace", traceback.format_exc()))
        outcome = Outcome(code=code, message=message_of(error))
    finally:
        embedded.leave(order.home)
    told.send(("end", outcome))
