"""Disks that are full: the database's, and that of the data folder."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from indexer.server import Server
from service.deps import Backend
from service.settings import Settings
from tests.faults.bed import Bed, ask, preload, started, surrounded
from tests.faults.errors import Attempts, CannotInject, Difference
from tests.faults.runs import Order, Run

DISK_MB = 192  # a new cluster has 40, and what it logs ahead takes more
SPARE_BYTES = 1_500_000  # at most, that are left when a disk is filled

Fill = Callable[[bool], None]


def full_database(bed: Bed, rng: random.Random, times: int) -> int:
    """The database's disk is full from some moment on, or from the beginning; then there is room again."""
    folder = bed.new_home()
    _ = bed.usual_s
    hit, attempts = 0, Attempts()
    with _disk(bed, rng, folder) as (server, fill):
        try:
            order = bed.order("full", url=started(server))
            while attempts.more(hit < times):
                with Run(order) as run:
                    if run.going(bed.moment(rng)):
                        fill(True)
                    outcome = run.outcome()
                fill(False)
                started(server)  # it may have given up
                if outcome.report is None:
                    if outcome.code not in ("database_unavailable", "storage_full"):
                        raise Difference(f"on a full disk a run ends with {outcome.code}: {outcome.message}")
                    hit += 1
                else:
                    order = bed.order("full", url=order.url)
            bed.settle(order)
        finally:
            fill(False)
            server.stop()
    return hit


@contextlib.contextmanager
def _disk(bed: Bed, rng: random.Random, folder: Path) -> Iterator[tuple[Server, Fill]]:
    """A server on a disk that can be filled: a small one in memory, or one that says it is full."""
    library = preload(bed)
    small = _mounted(folder)
    if small and (library is None or rng.random() < 0.5):
        try:
            yield Server(folder / "disk"), lambda on: _stuff(folder, rng.randrange(SPARE_BYTES) if on else None)
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
        return
    if small:
        subprocess.run(["umount", str(folder)], check=True)
    if library is None:
        raise CannotInject("no small disk can be mounted here, and there is no C compiler")
    flag = folder / "full"
    with surrounded(LD_PRELOAD=str(library), FAULT_DISK=str(flag)):
        server = Server(folder / "disk")
        yield server, lambda on: flag.touch() if on else flag.unlink(missing_ok=True)


def _mounted(folder: Path) -> bool:
    words = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m,mode=755", "tmpfs", str(folder)]
    return os.geteuid() == 0 and subprocess.run(words, check=False, capture_output=True).returncode == 0


def _stuff(folder: Path, leave_bytes: int | None) -> None:
    """Fill a disk but for so many bytes; None empties it again."""
    filler = folder / "filler"
    if leave_bytes is None:
        filler.unlink(missing_ok=True)
        return
    free = shutil.disk_usage(folder).free
    with contextlib.suppress(OSError), filler.open("wb") as file:
        for _ in range(max(0, free - leave_bytes) // 65_536):
            file.write(bytes(65_536))


def full_data_folder(bed: Bed, rng: random.Random, times: int) -> int:
    """The data folder's disk is full: the local index is not written, or a part of it; searches are right."""
    for _ in range(times):
        home = bed.new_home()
        order = bed.order("folder", home=home, file_bytes=int(10.0 ** rng.uniform(0.0, 5.0)), prepare=True)
        with Run(order) as run:
            outcome = run.outcome()
        if outcome.report is None or outcome.failed:
            raise Difference(f"with a full data folder a run ends with {outcome}")
        bed.check(order)
        settings = Settings(home=home, database_url=order.url, tokenizer=bed.tokenizer, threads=1, _env_file=None)  # type: ignore[call-arg]
        backend = Backend.open(settings)
        try:
            hits = ask(backend, order.archive)
        finally:
            backend.close()
        if hits != bed.ask(order.archive):
            raise Difference("what a full data folder leaves of the local index is searched")
        bed.settle(Order(**{**vars(order), "file_bytes": None}))
        shutil.rmtree(home)
    return times
