"""Connections to the database that are cut."""

from __future__ import annotations

import random
import time

from sqlalchemy import text

from indexer.server import PORT, USER
from tests.faults.bed import Bed
from tests.faults.errors import Attempts, Difference
from tests.faults.proxy import Proxy
from tests.faults.runs import Order, Run

_traffic: dict[tuple[int, str | None], int] = {}  # bytes of an undisturbed run, by bed and codebook


def terminated(bed: Bed, rng: random.Random, times: int) -> int:
    """pg_terminate_backend at a random moment."""
    order = bed.order("terminated")
    hit, attempts = 0, Attempts()
    while attempts.more(hit < times):
        with Run(order) as run, bed.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as own:
            if run.until(lambda: bool(run.stages)) and run.going(rng.uniform(0.0, 0.8 * bed.usual_s)):
                hit += own.execute(
                    text("""
                        SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                        WHERE client_port IS NOT NULL AND pid <> pg_backend_pid()
                    """)
                ).scalar_one()
            order = _cut(bed, run, order)
    bed.settle(order)
    return hit


def torn(bed: Bed, rng: random.Random, times: int) -> int:
    """The network drops the connection after a random number of bytes, nearly always amid a COPY."""
    order = bed.order("torn", codebook=rng.choice(("tokenizer", "archive")))
    bed.expected(order.codebook)
    path = f"{bed.server.socket_folder()}/.s.PGSQL.{PORT}"
    kind = id(bed), order.codebook  # the tokenizer's codebook is megabytes, one fitted to a short archive is not
    if kind not in _traffic:
        with Proxy(path) as proxy:
            bed.finish(bed.order("whole", url=_url(proxy), codebook=order.codebook), patient=False)
        _traffic[kind] = proxy.bytes
    hit, attempts = 0, Attempts()
    while attempts.more(hit < times):
        with Proxy(path, rng.randrange(_traffic[kind]), reset=rng.random() < 0.5) as proxy:
            through = bed.order(order.archive, url=_url(proxy), codebook=order.codebook)
            through = Order(**{**vars(through), "archive": order.archive})
            with Run(through) as run:
                again = _cut(bed, run, order)
            hit += proxy.dropped
        if proxy.dropped == (run.outcome().report is not None):
            raise Difference(f"dropped: {proxy.dropped}, and the run ends with {run.outcome()}")
        order = again
    bed.settle(order)
    return hit


def _url(proxy: Proxy) -> str:
    return f"postgresql://{USER}@127.0.0.1:{proxy.port}/postgres"


def _cut(bed: Bed, run: Run, order: Order) -> Order:
    """How a run ends that was cut off; the order to go on with."""
    outcome = run.outcome()
    if outcome.report is None and outcome.code != "database_unavailable":
        raise Difference(f"when its connection is cut a run ends with {outcome.code}: {outcome.message}")
    if outcome.report is None:
        time.sleep(0.02)  # the server needs a moment to see that nobody is there
        return order
    bed.check(order)
    return bed.order(order.archive, codebook=order.codebook)
