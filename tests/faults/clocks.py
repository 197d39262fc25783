"""Clocks that leap, and moments that files cannot have been written at."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess

from sqlalchemy import text

from indexer.server import USER, Server
from tests.faults import commands
from tests.faults.bed import FILES, Bed, own_audio, preload, started, surrounded
from tests.faults.errors import CannotInject, Difference
from tests.faults.runs import Run

YEAR_S = 31_557_600
ZONES = ("UTC", "Pacific/Kiritimati", "America/St_Johns", "Asia/Kathmandu", "Europe/London")


def leaping_clock(bed: Bed, rng: random.Random, times: int) -> int:
    """The wall clock of all processes, the server's too, is another one every 50 ms, by up to ten years."""
    library = preload(bed)
    if library is None:
        raise CannotInject("there is no C compiler")
    with surrounded(LD_PRELOAD=str(library), FAULT_CLOCK=str(rng.randrange(1, 1_000_000))):
        server = Server(bed.new_home() / "leaping")
        url = started(server)
        try:
            for number in range(times):
                order = bed.order("leaping", url=url, home=bed.folder / "leaping-home")
                process = commands.index(order)
                if number % 2:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(bed.moment(rng) + 1.0)
                    process.kill()
                    process.communicate()
                    process = commands.index(order)
                code, said = commands.ended(process)
                if code != 0:
                    raise Difference(f"while clocks leap a run ends with {code}: {said}")
                bed.check(order)
        finally:
            server.stop()
    return times


def odd_moments(bed: Bed, rng: random.Random, times: int) -> int:
    """Files of long ago and of a far future, which are other moments at each run; the server's zone changes too."""
    with own_audio(bed) as audio:
        order = bed.order("moments", audio=audio)
        try:
            for number in range(times):
                for path in audio.iterdir():
                    with contextlib.suppress(OSError, OverflowError):  # not every file system has every year
                        os.utime(path, (0, rng.choice((0, -1, 1, rng.uniform(-60, 470) * YEAR_S, 2**33, 2**35))))
                with bed.engine.begin() as connection:
                    connection.execute(text(f"ALTER ROLE {USER} SET timezone TO '{rng.choice(ZONES)}'"))
                with Run(order) as run:
                    outcome = run.outcome()
                report = outcome.report
                if report is None or outcome.failed or (report["indexed"], report["unchanged"])[number > 0] < FILES:
                    raise Difference(f"with files of other times a run ends with {outcome}")
                bed.check(order)
        finally:
            with bed.engine.begin() as connection:
                connection.execute(text(f"ALTER ROLE {USER} RESET timezone"))
    return times
