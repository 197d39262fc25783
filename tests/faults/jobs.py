"""Jobs of the service, whose processes are killed."""

from __future__ import annotations

import json
import random
import time

from indexer import intake
from model.tokenizer import Tokenizer
from service.jobs import queue
from tests.faults import commands
from tests.faults.bed import Bed
from tests.faults.errors import Attempts, Difference
from tests.faults.runs import RUN_S


def job(bed: Bed, rng: random.Random, times: int) -> int:
    """kill -9 of `sayagain work` while it does a job: another one goes on with it, as often as a job is tried."""
    hit, attempts = 0, Attempts()
    tokenizer = Tokenizer(bed.tokenizer, threads=1)
    bed.expected(None)
    while attempts.more(hit < times):
        order = bed.order("job", codebook=None)
        with bed.engine.begin() as connection:
            archive = intake.create_archive(connection, order.archive, tokenizer.info, tokenizer.codebook.dim)
            number = queue.add(connection, archive.id, "index_folder", {"folder": str(bed.audio)})
        for _ in range(min(times - hit, queue.ATTEMPTS - 1)):
            process = commands.command(order, "work", SAYAGAIN_ROOTS=json.dumps([str(bed.audio)]))
            _wait(bed, number, "queued")
            time.sleep(bed.moment(rng))
            process.kill()
            process.communicate()
            hit += 1
        process = commands.command(order, "work", SAYAGAIN_ROOTS=json.dumps([str(bed.audio)]))
        try:
            state = _wait(bed, number, "queued", "running")
        finally:
            process.terminate()
            process.communicate(timeout=RUN_S)
        if state != "done":
            raise Difference(f"a job whose runners die ends as {state}")
        bed.check(order)
    return hit


def _wait(bed: Bed, number: int, *states: str) -> str:
    deadline = time.monotonic() + RUN_S
    while True:
        with bed.engine.connect() as connection:
            state = queue.get(connection, number).state
        if state not in states:
            return state
        if time.monotonic() > deadline:
            raise Difference(f"a job is {state} for {RUN_S:.0f} s")
        time.sleep(0.02)
