"""Indexing on a Dask cluster: times real time with 1 and 2 workers, beside as many processes of one machine.

    python -m bench.scale.cluster [--audio FOLDER] [--workers 1 2] [--rounds 3] [--json]

A scheduler and workers of one thread each are started on this machine, and an archive of the tokenizer's own codebook
is made anew for each run, so that all of it is decoding, tokenizing and storing. The coordinator's own processor time
an hour of sound says how many workers one coordinator can keep busy. Take some hours of sound for figures that count:
starting takes seconds. Runs are in turn; the best of the rounds is told, and the median.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from sqlalchemy import Engine, text

from indexer import database, embedded, pipeline
from model.tokenizer import DEFAULT_WEIGHTS

DEMO = Path(__file__).parents[2] / "service" / "demo" / "archive"
START_S = 60.0  # for scheduler and workers


@dataclass(frozen=True)
class Run:
    """One run: who did it, and times real time, and the coordinator's processor seconds an hour of sound."""

    how: str
    workers: int
    times_real_time: float
    coordinator_s_per_hour: float


@contextlib.contextmanager
def cluster(workers: int, folder: Path) -> Iterator[str]:
    """The address of a scheduler with so many workers, all of them processes of this machine."""
    from distributed import Client

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    commands = [["scheduler", "--host", "127.0.0.1", "--port", address.rpartition(":")[2], "--no-dashboard"]]
    commands += [
        ["worker", address, "--nthreads", "1", "--no-dashboard", "--no-nanny", "--local-directory", str(folder)]
    ] * workers
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.dask_{what}", *words],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for what, *words in commands
    ]
    try:
        with Client(address, timeout=START_S, set_as_default=False) as client:
            client.wait_for_workers(workers, timeout=START_S)
        yield address
    finally:
        for process in processes:
            process.kill()
            process.wait()


def run(engine: Engine, audio: Path, workers: int, scheduler: str | None) -> Run:
    """Index into an archive that is new."""
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM archive"))
    began_s = time.process_time()
    report = pipeline.index_archive(
        engine, [audio], "bench", DEFAULT_WEIGHTS, workers=workers, codebook="tokenizer", codes=False,
        scheduler=scheduler,
    )  # fmt: skip
    used_s = time.process_time() - began_s
    if report.failed:
        raise SystemExit(f"{report.failed[0].name}: {report.failed[0].message}")
    how = "processes" if scheduler is None else "Dask"
    return Run(how, workers, report.times_real_time, used_s / (report.audio_s / 3600.0))


def main() -> None:
    """Run them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio", type=Path, default=DEMO)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    runs: list[Run] = []
    with tempfile.TemporaryDirectory(prefix="sayagain-bench-") as folder:
        home = Path(folder)
        engine = database.open_engine(home, None)
        try:
            database.migrate(engine)
            for _ in range(options.rounds):
                for workers in options.workers:
                    runs.append(run(engine, options.audio, workers, None))
                    with cluster(workers, home) as address:
                        runs.append(run(engine, options.audio, workers, address))
        finally:
            engine.dispose()
            embedded.leave(home)
    if options.json:
        print(json.dumps({"machine": platform.processor() or platform.machine(), "runs": [asdict(r) for r in runs]}))
        return
    print("| workers | how | times real time, best / median | coordinator, processor s an hour of sound |")
    print("|---|---|---|---|")
    for workers in options.workers:
        for how in ("processes", "Dask"):
            own = [one for one in runs if (one.workers, one.how) == (workers, how)]
            times = [one.times_real_time for one in own]
            used_s = statistics.median(one.coordinator_s_per_hour for one in own)
            print(f"| {workers} | {how} | {max(times):.0f} / {statistics.median(times):.0f} | {used_s:.1f} |")


if __name__ == "__main__":
    main()
