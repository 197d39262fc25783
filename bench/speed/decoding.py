"""What it costs to decode clips in processes of their own: a search of the demo over HTTP, and the reading of one clip.

    python -m bench.speed.decoding [--clip FILE] [--rounds 200] [--only search | read]

Both ways take turns in one process, so that whatever else the machine is at falls on both.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import numpy as np
import uvicorn
from fastapi import FastAPI

import service
from service import clips
from service.app import create_app
from service.decoding import Decoders
from service.settings import Settings

DEMO = Path(service.__file__).parent / "demo"
LONGEST_S = 60.0
WARM_UP = 10  # rounds that do not count


class InProcess:
    """Reads clips where it is asked to, as a service without decoders would."""

    read_clip = staticmethod(clips.read_clip)


@contextmanager
def serving(home: str) -> Iterator[tuple[FastAPI, str]]:
    """A service that has the demo's archive, and where it listens."""
    environment = {**os.environ, "SAYAGAIN_HOME": home}
    environment.pop("SAYAGAIN_DATABASE_URL", None)
    index = ["index", str(DEMO / "archive"), "--archive", "demo"]
    subprocess.run([sys.executable, "-m", "service", *index], env=environment, check=True, capture_output=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = create_app(Settings(home=Path(home), database_url=None))
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    try:
        yield app, f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def in_turn(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each way, one after the other in each round."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(WARM_UP + rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            if number >= WARM_UP:
                taken[name].append(1e3 * (time.perf_counter() - began))
    return taken


def told(what: str, taken: dict[str, list[float]]) -> None:
    """A row for each way, with what it takes more than the first in the same round."""
    first = np.array(next(iter(taken.values())))
    for name, each in taken.items():
        more = np.median(np.array(each) - first)
        print(f"| {what} | {name} | {np.median(each):.2f} | {np.percentile(each, 95):.2f} | {more:+.2f} |")


def search(clip: bytes, rounds: int) -> None:
    """POST /v1/search of the clip."""
    with tempfile.TemporaryDirectory() as home, serving(home) as (app, url), httpx.Client() as client:
        backend = app.state.backend
        decoders = backend.decoders

        def ask(through: object) -> None:
            backend.decoders = through
            files = {"file": ("clip", clip)}
            client.post(f"{url}/v1/search", files=files, data={"archive": "demo"}).raise_for_status()

        told("search", in_turn({"in process": lambda: ask(InProcess), "decoder": lambda: ask(decoders)}, rounds))
        backend.decoders = decoders


def read(clip: bytes, rounds: int) -> None:
    """The clip, read."""
    with closing(Decoders()) as decoders:
        ways = {
            "in process": lambda: clips.read_clip(clip, LONGEST_S),
            "decoder": lambda: decoders.read_clip(clip, LONGEST_S),
        }
        told("read", in_turn(ways, rounds))


def main() -> None:
    """Ask in turn, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", type=Path, default=DEMO / "query.opus")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--only", choices=("search", "read"))
    arguments = parser.parse_args()
    clip = arguments.clip.read_bytes()
    print("| what | where | p50 ms | p95 ms | more, p50 ms |\n|---|---|---|---|---|")
    for name, measure in {"read": read, "search": search}.items():
        if arguments.only in (None, name):
            measure(clip, arguments.rounds)


if __name__ == "__main__":
    main()
