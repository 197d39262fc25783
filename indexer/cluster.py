"""The same pipeline on a Dask cluster: workers anywhere do the tasks, one coordinator plans, fits and stores.

The coordinator's connection holds the archive's lock and stores each recording in a transaction of its own; Dask knows
who is at which file. So whatever dies, workers or scheduler, nothing is stored twice, and what was open is done again.
"""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import queue
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from indexer import desk
from indexer.desk import Answer, Kind, Lacking, Unable, Wanted
from indexer.discover import Failure
from indexer.messages import Index, Measure, Measured, Result, Setup, Task, UseCodebook
from indexer.pool import Done, WorkersFailed

if TYPE_CHECKING:
    from distributed import Client

CONNECT_S = 10.0  # for one attempt to reach the scheduler
PATIENCE_S = 120.0  # that a scheduler, or the last worker, may be gone before the run is given up
POLL_S = 0.5  # between two looks at whether the scheduler is there
AHEAD = 2  # tasks given for each thread of the cluster
MOST_LOSSES = 20  # of the connection while nothing gets done
ATTEMPTS = 3  # workers that may be unable to do a task
CARRIED_BYTES = 8 << 20  # of embeddings that go along with a task; more are cheaper to make again


class ClusterMissing(Exception):
    """Dask is not installed."""

    code = "cluster_extra_missing"


class SchedulerLost(Exception):
    """The scheduler cannot be reached, or has gone and not come back."""

    code = "scheduler_lost"


class _Lost(Exception):
    """The connection to the scheduler is gone, and what it had with it."""


@dataclass(eq=False)
class _Open:
    """A task that is not done: workers that were unable to do it, and whether workers have died at it."""

    task: Task
    unable: list[str] = field(default_factory=list)
    suspect: bool = False


class ClusterPool:
    """Workers of a Dask cluster, as `indexer.pool.Pool` has those of one machine. A context manager."""

    def __init__(self, address: str, setup: Setup, patience_s: float = PATIENCE_S) -> None:
        """Raises ClusterMissing, SchedulerLost, OSError where the tokenizer cannot be read."""
        self._address, self._patience_s = address, patience_s
        data = setup.tokenizer_path.read_bytes()
        sha256 = hashlib.sha256(data).hexdigest()
        self._things: dict[Kind, tuple[str, bytes]] = {"tokenizer": (sha256, data)}
        self._wanted = Wanted(desk.release(), replace(setup, tokenizer_path=Path()), sha256)
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._client: Client | None = None
        self._seen_s = time.monotonic()  # when there was a worker
        self._losses = 0  # of the connection, since a task was last done
        self._connect(min(CONNECT_S, patience_s))

    def __enter__(self) -> ClusterPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            with contextlib.suppress(Exception):  # they go by themselves after a while
                self._client.run(desk.leave, on_error="ignore")
            self._disconnect()

    def use(self, codebook: UseCodebook) -> None:
        """From here on, tokens are of this codebook."""
        sha256 = codebook.codebook.sha256
        self._things["codebook"] = (sha256, pickle.dumps(codebook.codebook, pickle.HIGHEST_PROTOCOL))
        self._wanted = replace(self._wanted, codebook_sha256=sha256)
        with contextlib.suppress(Exception):  # whoever lacks it says so
            self._give("codebook", None)

    def run(self, tasks: Iterable[Task]) -> Iterator[Done]:
        """Results as they come, in any order. A file at which workers die again and again fails: worker_died.

        Raises WorkersFailed where no worker can do anything, SchedulerLost.
        """
        waiting = deque(_Open(task) for task in tasks)
        suspects: deque[_Open] = deque()
        given: dict[str, tuple[Any, _Open]] = {}
        while waiting or suspects or given:
            try:
                self._submit(waiting, suspects, given)
                for key in self._finished():
                    if key not in given:
                        continue  # of a connection that is no more
                    future, one = given[key]
                    result = self._result(future, one)
                    del given[key]
                    if result is not None:
                        yield Done(one.task, result)
                    elif one.suspect:
                        suspects.append(one)
                    else:
                        waiting.appendleft(one)
            except _Lost:
                waiting.extendleft(one for _, one in given.values() if not one.suspect)
                suspects.extend(one for _, one in given.values() if one.suspect)
                given.clear()
                self._losses += 1
                if self._losses > MOST_LOSSES:
                    raise SchedulerLost(
                        f"the connection to the scheduler at {self._address} breaks again and again"
                    ) from None
                self._disconnect()
                self._connect(self._patience_s)

    def _submit(self, waiting: deque[_Open], suspects: deque[_Open], given: dict[str, tuple[Any, _Open]]) -> None:
        """Give out what the cluster has room for; a task at which workers have died only when it is alone."""
        client = self._client
        if client is None:
            raise _Lost
        with _losing():
            threads: dict[str, int] = client.nthreads()
        now = time.monotonic()
        if threads:
            self._seen_s = now
        elif now - self._seen_s > self._patience_s:
            raise WorkersFailed(f"the cluster has had no worker for {self._patience_s:.0f} s")
        room = max(1, AHEAD * sum(threads.values()))
        while len(given) < room and (waiting or (suspects and not given)):
            one = waiting.popleft() if waiting else suspects.popleft()
            others = [address for address in threads if address not in one.unable]
            confined = others if one.unable and others else None
            wanted = self._wanted if len(one.unable) < ATTEMPTS - 1 else replace(self._wanted, look=False)
            with _losing():
                future = client.submit(
                    desk.do, wanted, pickle.dumps(_lightened(one.task), pickle.HIGHEST_PROTOCOL),
                    pure=False, workers=confined, allow_other_workers=confined is not None,
                )  # fmt: skip
                given[str(future.key)] = (future, one)
                future.add_done_callback(lambda done: self._inbox.put(str(done.key)))

    def _finished(self) -> Iterator[str]:
        """Keys of tasks that are over, one at least unless the time for another look has come."""
        with contextlib.suppress(queue.Empty):
            yield self._inbox.get(timeout=POLL_S)
            while True:
                yield self._inbox.get_nowait()
        if self._client is None or self._client.status != "running":
            raise _Lost

    def _result(self, future: Any, one: _Open) -> Result | None:
        """What came of a task; None where it is to be tried again."""
        from distributed import KilledWorker

        if future.status == "error":
            with _losing():
                error = future.exception(timeout=CONNECT_S)
            if isinstance(error, KilledWorker):
                if one.suspect:
                    return _died(one.task)
                one.suspect = True  # or else another file was to blame, which that worker had beside it
                return None
            _tried(one, "one that cannot say its name", f"{type(error).__name__}: {_line(error)}")
            return None
        if future.status != "finished":
            raise _Lost
        with _losing():
            answer: Answer = future.result(timeout=self._patience_s)
        if isinstance(answer.result, Lacking):
            with contextlib.suppress(Exception):  # it may be gone: then another one does the task
                self._give(answer.result.kind, [answer.address])
            return None
        if isinstance(answer.result, Unable):
            _tried(one, answer.address, answer.result.why)
            return None
        self._losses = 0
        return answer.result

    def _give(self, kind: Kind, workers: list[str] | None) -> None:
        """Send workers what they lack; all of them where none are named."""
        assert self._client is not None
        sha256, data = self._things[kind]
        if workers is None:
            held = self._client.run(desk.has, kind, sha256, on_error="ignore")
            workers = [address for address, has in held.items() if not has]
        if workers:
            self._client.run(desk.take, kind, sha256, data, workers=workers, on_error="ignore")

    def _connect(self, patience_s: float) -> None:
        try:
            from distributed import Client
        except ImportError as error:
            raise ClusterMissing("distributed is needed: pip install 'sayagain[cluster]'") from error
        until = time.monotonic() + patience_s
        while True:
            try:
                self._client = Client(
                    self._address, timeout=min(CONNECT_S, patience_s), set_as_default=False, name="sayagain"
                )
                self._seen_s = time.monotonic()
                break
            except (OSError, ValueError, TimeoutError) as error:
                if time.monotonic() > until or isinstance(error, ValueError):
                    raise SchedulerLost(
                        f"the scheduler at {self._address} does not answer ({_line(error)}); what has been stored "
                        "stays, and another run goes on from there"
                    ) from error
                time.sleep(POLL_S)
        with contextlib.suppress(Exception):
            for kind in self._things:
                self._give(kind, None)

    def _disconnect(self) -> None:
        client, self._client = self._client, None
        self._inbox = queue.SimpleQueue()
        if client is not None:
            with contextlib.suppress(Exception):
                client.close(timeout=2)


@contextlib.contextmanager
def _losing() -> Iterator[None]:
    """Whatever Dask raises when the scheduler is not there any more, as one thing."""
    import asyncio
    import concurrent.futures

    from distributed.client import FutureCancelledError
    from distributed.comm.core import CommClosedError

    gone = (CommClosedError, OSError, TimeoutError, FutureCancelledError, asyncio.CancelledError, AttributeError)
    try:
        yield
    except (*gone, concurrent.futures.CancelledError, RuntimeError) as error:
        raise _Lost from error


def _lightened(task: Task) -> Task:
    """A task without embeddings that are more to send than to make."""
    heard = task.heard if isinstance(task, Index) else None
    if heard is None or sum(part.embeddings.nbytes for part in heard.parts) <= CARRIED_BYTES:
        return task
    return Index(heard.file)


def _tried(one: _Open, address: str, why: str) -> None:
    """Raises WorkersFailed where that was one worker too many."""
    one.unable.append(address)
    if len(one.unable) >= ATTEMPTS:
        raise WorkersFailed(f"workers cannot do what they are asked; the last, {address}: {why}")


def _died(task: Task) -> Result:
    if isinstance(task, Measure):
        return Measured([None] * len(task.files))
    return Failure(task.file.name, "worker_died", "the workers of the cluster died again and again at this file")


def _line(error: BaseException | None) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
