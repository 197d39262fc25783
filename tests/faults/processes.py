"""Processes that die or stop: workers, the coordinator, the server and what serves within it."""

from __future__ import annotations

import random
import signal

import psutil

from tests.faults.bed import LOST, Bed, kill, postmaster
from tests.faults.errors import Attempts, Difference
from tests.faults.runs import Order, Run

KINDS = (
    "tokenizer",
    "archive",
)  # whose codebook; an own one means that files are heard first, and a codebook is fitted


def worker(bed: Bed, rng: random.Random, times: int) -> int:
    """kill -9 of workers, several in a run: the run itself goes on."""
    return _workers(bed, rng, times, signal.SIGKILL)


def stopped_worker(bed: Bed, rng: random.Random, times: int) -> int:
    """A worker that stops for good, as one does that reads from a disk which does not answer."""
    return _workers(bed, rng, times, signal.SIGSTOP, stall_s=1.0, start_s=8.0)


def _workers(bed: Bed, rng: random.Random, times: int, number: signal.Signals, **limits: float) -> int:
    order = bed.order("worker", workers=2, codebook=rng.choice(KINDS), limits=limits)
    bed.expected(order.codebook)
    hit, attempts = 0, Attempts()
    while attempts.more(hit < times):
        with Run(order) as run:
            heard = False  # a file that two workers die at is left out of what the codebook is fitted to
            while hit < times and run.going(rng.uniform(0.05, 0.7) * bed.usual_s):
                if run.stage in ("listening", "looking"):
                    if heard:
                        continue
                    heard = True
                found = run.workers()
                if found:
                    victim = rng.choice(found)
                    try:
                        victim.send_signal(number)
                        hit += 1
                    except psutil.NoSuchProcess:
                        continue
            outcome = run.outcome()
        if outcome.report is None and outcome.code not in LOST:
            raise Difference(f"a run whose worker dies ends with {outcome.code}: {outcome.message}")
        if set(outcome.failed.values()) - {"worker_died", "decoder_stalled"}:
            raise Difference(f"files fail with the workers: {outcome.failed}")
        if hit < times:
            order = bed.order("worker", workers=2, codebook=order.codebook, limits=limits)
    bed.settle(order)
    return hit


def coordinator(bed: Bed, rng: random.Random, times: int) -> int:
    """kill -9 of the process that indexes, again and again; nobody stays behind, and its lock goes."""
    order = bed.order("coordinator", workers=2, codebook=rng.choice(KINDS))
    bed.expected(order.codebook)
    return _coordinator(bed, rng, times, order, bed.usual_s)


def first_start(bed: Bed, rng: random.Random, times: int) -> int:
    """kill -9 of the process that makes or starts the embedded server."""
    order = bed.order("start", home=bed.new_home(), url=None)
    _ = bed.usual_s
    return _coordinator(bed, rng, times, order, 1.5)


def _coordinator(bed: Bed, rng: random.Random, times: int, order: Order, within_s: float) -> int:
    hit, attempts = 0, Attempts()
    while attempts.more(hit < times):
        with Run(order) as run:
            if run.going(rng.uniform(0.0, within_s)):
                run.kill()
                hit += 1
            elif run.outcome().report is not None:
                order = bed.order(order.archive, codebook=order.codebook, home=order.home, url=order.url)
            elif run.outcome().code not in LOST:
                raise Difference(f"a rerun ends with {run.outcome().code}: {run.outcome().message}")
    bed.settle(order)
    return hit


def embedded_server(bed: Bed, rng: random.Random, times: int) -> int:
    """kill -9 of the embedded PostgreSQL: the next run finds it dead, and starts it."""
    return _server(bed, rng, times, bed.order("server", home=bed.home, url=None), whole=True)


def embedded_backend(bed: Bed, rng: random.Random, times: int) -> int:
    """kill -9 of a process of the embedded PostgreSQL, which recovers by itself."""
    return _server(bed, rng, times, bed.order("backend", home=bed.home, url=None), whole=False)


def external_server(bed: Bed, rng: random.Random, times: int) -> int:
    """kill -9 of a PostgreSQL of one's own, which somebody starts again."""
    return _server(bed, rng, times, bed.order("server"), whole=True)


def external_backend(bed: Bed, rng: random.Random, times: int) -> int:
    """kill -9 of a process of a PostgreSQL of one's own."""
    return _server(bed, rng, times, bed.order("backend"), whole=False)


def _server(bed: Bed, rng: random.Random, times: int, order: Order, *, whole: bool) -> int:
    data = bed.server.data if order.url is not None else order.home / "postgres"
    _ = bed.usual_s
    hit, attempts = 0, Attempts()
    while attempts.more(hit < times):
        with Run(order) as run:
            gone = run.until(lambda: bool(run.stages)) and run.going(rng.uniform(0.0, 0.8 * bed.usual_s))
            pid = postmaster(data)
            if gone and pid is not None:
                hit += kill(pid if whole else rng.choice(psutil.Process(pid).children()).pid)
            outcome = run.outcome()
        if outcome.report is None and outcome.code != "database_unavailable":
            raise Difference(f"without its server a run ends with {outcome.code}: {outcome.message}")
        if order.url is not None:
            _ = bed.url  # it is started again
        if outcome.report is not None and hit < times:
            order = bed.order(order.archive, home=order.home, url=order.url)
    bed.settle(order)
    return hit
