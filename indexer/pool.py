"""Worker processes, as the coordinator sees them: tasks in, results out; one that dies is replaced."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from types import TracebackType

from indexer.discover import Failure
from indexer.messages import STALLED, Measure, Ready, Result, Setup, Task, UseCodebook

AHEAD = 2  # tasks given to a worker at a time, so that it need not wait for its results to be stored
ATTEMPTS = 2  # deaths that a task may cause before it is given up
FALSE_STARTS = 3  # workers in a row that may die before they are ready
# Spawned, never forked, and without the caller's main module, which need not be one that can be imported twice.
_START = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[2]); from indexer.worker import main; main(int(sys.argv[1]))"
)


class WorkersFailed(Exception):
    """Worker processes cannot be started."""

    code = "workers_failed"


@dataclass(frozen=True, eq=False)
class Done:
    """A task with what came of it."""

    task: Task
    result: Result


@dataclass(eq=False)
class _Process:
    process: subprocess.Popen[bytes]
    connection: Connection
    given: deque[Task] = field(default_factory=deque)
    ready: bool = False


class Pool:
    """So many worker processes. A context manager: they are gone when it is left."""

    def __init__(self, workers: int, setup: Setup) -> None:
        self.setup = setup
        self._using: UseCodebook | None = None
        self._false_starts = 0
        self._processes: list[_Process] = []
        for _ in range(workers):
            self._processes.append(self._start())

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._processes:
            worker.connection.close()
            worker.process.kill()  # what is being done is not wanted any more, and nothing of it is stored
        for worker in self._processes:
            worker.process.wait()

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.process.pid for worker in self._processes]

    def use(self, codebook: UseCodebook) -> None:
        """Give every worker the codebook, now and when one is replaced."""
        self._using = codebook
        for place, worker in enumerate(self._processes):
            try:
                worker.connection.send(codebook)
            except OSError:
                self._replace(place)

    def run(self, tasks: Iterable[Task]) -> Iterator[Done]:
        """Results as they come, in any order. A task whose worker dies is tried once more, then fails: worker_died.

        Raises WorkersFailed.
        """
        waiting = deque(tasks)
        deaths: dict[int, int] = {}
        left = len(waiting)
        while left:
            for place in range(len(self._processes)):
                self._give(place, waiting)
            for connection in wait([worker.connection for worker in self._processes]):
                place = next(i for i, worker in enumerate(self._processes) if worker.connection is connection)
                worker = self._processes[place]
                try:
                    message = worker.connection.recv()
                except (EOFError, OSError):
                    failed = self._bury(place, waiting, deaths)
                    if failed is not None:
                        left -= 1
                        yield failed
                    continue
                if isinstance(message, Ready):
                    worker.ready, self._false_starts = True, 0
                    continue
                left -= 1
                yield Done(worker.given.popleft(), message)

    def _give(self, place: int, waiting: deque[Task]) -> None:
        worker = self._processes[place]
        while waiting and len(worker.given) < AHEAD:
            worker.given.append(waiting.popleft())
            try:
                worker.connection.send(worker.given[-1])
            except OSError:
                return  # it has died: its end of the connection says so to whoever waits

    def _bury(self, place: int, waiting: deque[Task], deaths: dict[int, int]) -> Done | None:
        """Replace a dead worker; what it had goes back, and the task that it was at is blamed."""
        dead = self._processes[place]
        tasks = list(dead.given)
        self._replace(place)
        blamed: Done | None = None
        if dead.ready and tasks:
            deaths[id(tasks[0])] = deaths.get(id(tasks[0]), 0) + 1
            if deaths[id(tasks[0])] >= ATTEMPTS:
                blamed = _died(tasks.pop(0), dead.process.returncode)
        waiting.extendleft(reversed(tasks))
        return blamed

    def _replace(self, place: int) -> None:
        dead = self._processes[place]
        dead.connection.close()
        dead.process.kill()
        dead.process.wait()
        if not dead.ready:
            self._false_starts += 1
            if self._false_starts >= FALSE_STARTS:
                raise WorkersFailed(f"worker processes die at once (exit status {dead.process.returncode})")
        self._processes[place] = self._start()

    def _start(self) -> _Process:
        ours, theirs = multiprocessing.Pipe()
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        path = json.dumps([entry or os.getcwd() for entry in sys.path])
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", _START, str(theirs.fileno()), path],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={**os.environ, **threads},
            start_new_session=True,  # an interrupt at the terminal is the coordinator's
        )
        theirs.close()
        with contextlib.suppress(OSError):  # if it is dead already, its end of the connection says so to whoever waits
            ours.send(self.setup)
            if self._using is not None:
                ours.send(self._using)
        return _Process(process, ours)


def _died(task: Task, status: int) -> Done:
    name = "" if isinstance(task, Measure) else task.file.name
    how = f"signal {-status}" if status < 0 else f"exit status {status}"
    if status == STALLED:
        return Done(task, Failure(name, "decoder_stalled", "the file gave no sound for too long, twice"))
    return Done(task, Failure(name, "worker_died", f"the worker process died twice at this file ({how})"))
