"""A service under load: how long answers take, whether any fails, and whether its memory stays what it was.

    python -m bench.load [--people 50] [--seconds 300] [--workers 1]

Needs the extra `load`. Starts `sayagain serve` with the demo's recordings in two archives and, with locust, so many
people who search (77 %), listen, add recordings and delete some. Prints a table in Markdown; memory is the resident set
of all the service's processes but PostgreSQL's, every second. Exit code 1 where a request failed.
"""

from __future__ import annotations

import argparse
import csv
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import psutil

from bench.load.people import ARCHIVES, DEMO

WARM_S = 30.0  # in which memory may grow: indexes are opened, threads started


def main() -> None:
    """Start, load, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sayagain-load-") as folder:
        home = Path(folder, "home")
        environment = {**os.environ, "SAYAGAIN_HOME": str(home), "SAYAGAIN_LOG_LEVEL": "warning"}
        for archive in ARCHIVES:
            words = [sys.executable, "-m", "service", "index", str(DEMO / "archive"), "--archive", archive]
            subprocess.run(words, env=environment, check=True, stderr=subprocess.DEVNULL)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = [sys.executable, "-m", "service", "serve", "--port", str(port), "--workers", str(given.workers)]
        server = subprocess.Popen(words, env=environment)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(url)
            failed = _load(url, given, Path(folder, "load"), psutil.Process(server.pid))
        finally:
            server.terminate()
            server.wait(60)
    sys.exit(1 if failed else 0)


def _wait(url: str) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/readyz").is_success:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise SystemExit("the service does not come up")


def _load(url: str, given: argparse.Namespace, out: Path, server: psutil.Process) -> int:
    """Run locust and print what it found; how many requests failed."""
    words = [
        sys.executable, "-m", "locust", "--headless", "--locustfile", str(Path(__file__).with_name("people.py")),
        "--host", url, "--users", str(given.people), "--spawn-rate", "10", "--run-time", f"{given.seconds:.0f}s",
        "--csv", str(out), "--only-summary", "--loglevel", "ERROR",
    ]  # fmt: skip
    memory: list[tuple[float, float]] = []
    over = threading.Event()
    began = time.monotonic()
    watching = threading.Thread(target=_watch, args=(server, memory, over, began))
    watching.start()
    subprocess.run(words, stdout=subprocess.DEVNULL, check=False)
    over.set()
    watching.join()
    with Path(f"{out}_stats.csv").open() as file:
        rows = list(csv.DictReader(file))
    print(f"{given.people} people, {given.seconds:.0f} s, {given.workers} worker(s)\n")
    print("| request | number | failed | a second | p50 ms | p95 ms | p99 ms |\n|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['Name']} | {row['Request Count']} | {row['Failure Count']} | {float(row['Requests/s']):.1f} "
            f"| {row['50%']} | {row['95%']} | {row['99%']} |"
        )
    settled = [mb for at, mb in memory if at >= WARM_S]
    third = max(1, len(settled) // 3)
    first, last = settled[:third], settled[-third:]
    print(
        f"\nmemory after {WARM_S:.0f} s: mean of the first third {sum(first) / len(first):.0f} MB, of the last "
        f"{sum(last) / len(last):.0f} MB, most {max(mb for _, mb in memory):.0f} MB"
    )
    failures = Path(f"{out}_failures.csv").read_text().splitlines()[1:]
    for line in failures:
        print(line, file=sys.stderr)
    return sum(int(row["Failure Count"]) for row in rows if row["Name"] == "Aggregated")


def _watch(server: psutil.Process, memory: list[tuple[float, float]], over: threading.Event, began: float) -> None:
    while not over.wait(1.0):
        total = 0
        for process in [server, *server.children(recursive=True)]:
            try:
                if "postgres" not in process.name():
                    total += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        memory.append((time.monotonic() - began, total / 1e6))


if __name__ == "__main__":
    main()
