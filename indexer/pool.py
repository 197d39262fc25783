"""Worker processes, as the coordinator sees them: tasks in, results out; one that dies is replaced."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from types import TracebackType

from indexer.discover import Failure
from indexer.messages import STALLED, Busy, Measure, Ready, Result, Setup, Task, UseCodebook

AHEAD = 2  # tasks given to a worker at a time, so that it need not wait for its results to be stored
ATTEMPTS = 2  # deaths that a task may cause before it is given up
FALSE_STARTS = 3  # workers in a row that may die before they are ready
SILENT = 1.5  # of the time after which a worker ends itself: then it cannot, and is ended
GRACE_S = 2.0  # on top of that
TICK_S = 1.0  # silence is counted in such steps, and only while nothing else is done: a clock that leaps kills nobody
KILL_S = 5.0  # that a killed process has to go; one that waits for a disk which is stuck does not
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
    silent_s: float = 0.0  # since it last said anything, while somebody listened
    hangs: bool = False


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
            _gone(worker.process)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.process.pid for worker in self._processes]

    def use(self, codebook: UseCodebook) -> None:
        """Give every worker the codebook, now and when one is replaced."""
        self._using = codebook
        for place, worker in enumerate(self._processes):
            if worker.ready and not self._send(worker, codebook):
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
            for connection in self._wait():
                place = next(i for i, worker in enumerate(self._processes) if worker.connection is connection)
                worker = self._processes[place]
                try:
                    message = worker.connection.recv()
                except (EOFError, OSError) as error:
                    worker.hangs |= isinstance(error, BlockingIOError)  # it has stopped amid what it says
                    failed = self._bury(place, waiting, deaths)
                    if failed is not None:
                        left -= 1
                        yield failed
                    continue
                if isinstance(message, Ready):
                    worker.ready, self._false_starts = True, 0
                    if self._using is not None:
                        self._send(worker, self._using)
                    continue
                if isinstance(message, Busy):
                    continue
                left -= 1
                yield Done(worker.given.popleft(), message)

    def _give(self, place: int, waiting: deque[Task]) -> None:
        worker = self._processes[place]
        while worker.ready and waiting and len(worker.given) < AHEAD:
            worker.given.append(waiting.popleft())
            if not self._send(worker, worker.given[-1]):
                return

    def _send(self, worker: _Process, message: Task | UseCodebook) -> bool:
        """Whether it went; who does not listen is ended, and its end of the connection says so to whoever waits."""
        try:
            worker.connection.send(message)
        except OSError as error:
            worker.hangs |= isinstance(error, BlockingIOError)
            worker.process.kill()
            return False
        return True

    def _wait(self) -> list[Connection]:
        """Connections of workers that have said something, or that have died; those that hang are ended."""
        began = time.monotonic()
        found = wait([worker.connection for worker in self._processes], TICK_S)
        passed_s = min(TICK_S, time.monotonic() - began)
        heard = [connection for connection in found if isinstance(connection, Connection)]
        for worker in self._processes:
            idle = worker.ready and not worker.given
            worker.silent_s = 0.0 if idle or worker.connection in heard else worker.silent_s + passed_s
            if worker.silent_s > (self._silence_s if worker.ready else self.setup.start_s):
                worker.hangs = True
                worker.process.kill()
                if not _gone(worker.process):  # not even that reaches it: it keeps its end of the connection
                    heard.append(worker.connection)
                worker.silent_s = 0.0
        return heard

    @property
    def _silence_s(self) -> float:
        return SILENT * self.setup.stall_s + GRACE_S

    def _bury(self, place: int, waiting: deque[Task], deaths: dict[int, int]) -> Done | None:
        """Replace a dead worker; what it had goes back, and the task that it was at is blamed."""
        dead = self._processes[place]
        tasks = list(dead.given)
        self._replace(place)
        blamed: Done | None = None
        if dead.ready and tasks:
            deaths[id(tasks[0])] = deaths.get(id(tasks[0]), 0) + 1
            if deaths[id(tasks[0])] >= ATTEMPTS:
                blamed = _died(tasks.pop(0), STALLED if dead.hangs else dead.process.returncode)
        waiting.extendleft(reversed(tasks))
        return blamed

    def _replace(self, place: int) -> None:
        dead = self._processes[place]
        dead.connection.close()
        dead.process.kill()
        _gone(dead.process)
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
        # Neither a message nor a part of one is waited for without end.
        with socket.socket(fileno=os.dup(ours.fileno())) as end:
            most = struct.pack("ll", int(self._silence_s) + 1, 0)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, most)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, most)
        with contextlib.suppress(OSError):  # if it is dead already, its end of the connection says so to whoever waits
            ours.send(self.setup)
        return _Process(process, ours)


def _gone(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process that has been killed is gone, after a moment."""
    try:
        process.wait(KILL_S)
    except subprocess.TimeoutExpired:
        return False
    return True


def _died(task: Task, status: int) -> Done:
    name = "" if isinstance(task, Measure) else task.file.name
    how = f"signal {-status}" if status < 0 else f"exit status {status}"
    if status == STALLED:
        return Done(task, Failure(name, "decoder_stalled", "the file gave no sound for too long, twice"))
    return Done(task, Failure(name, "worker_died", f"the worker process died twice at this file ({how})"))
