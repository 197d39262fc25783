"""Several at once: two who index into one archive, and into two."""

from __future__ import annotations

import random

from tests.faults.bed import Bed
from tests.faults.errors import Difference
from tests.faults.runs import Order, Run


def two_indexers(bed: Bed, rng: random.Random, times: int) -> int:
    """Two index into one archive: one is told that it is busy, or comes when the other is done."""
    for _ in range(times):
        order = bed.order("rivals", codebook=rng.choice(("tokenizer", "archive")))
        bed.expected(order.codebook)
        with Run(order) as one:
            one.going(rng.uniform(0.0, bed.usual_s))
            with Run(order) as other:
                ends = [one.outcome(), other.outcome()]
        if not any(end.report for end in ends) or any(end.code not in (None, "archive_busy") for end in ends):
            raise Difference(f"two at once end with {ends}")
        bed.check(order)
        bed.settle(order)
    return times


def two_archives(bed: Bed, rng: random.Random, times: int) -> int:
    """Two index into two archives of one database: neither minds the other."""
    for _ in range(times):
        first, second = (bed.order("side", codebook=kind) for kind in ("tokenizer", "archive"))
        bed.expected("archive")
        with Run(first) as one:
            one.going(rng.uniform(0.0, bed.usual_s))
            with Run(second) as other:
                for end in (one.outcome(), other.outcome()):
                    if end.report is None or end.failed:
                        raise Difference(f"beside another one a run ends with {end}")
        bed.check(first)
        bed.check(second)
    return times


def new_schema(bed: Bed, rng: random.Random, times: int) -> int:
    """Several begin at once where there is not even a server: one makes it, one brings the tables."""
    for _ in range(times):
        home = bed.new_home()
        orders = [Order(**{**vars(bed.order("new", url=None)), "home": home}) for _ in range(3)]
        runs = [Run(order) for order in orders]
        try:
            for run in runs:
                run.going(rng.uniform(0.0, 0.3))
            ends = [run.outcome() for run in runs]
        finally:
            for run in runs:
                run.kill()
        if any(end.report is None or end.failed for end in ends):
            raise Difference(f"where nothing is yet, runs end with {ends}")
        for order in orders:
            bed.check(order)
    return times
