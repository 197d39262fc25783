"""A Dask scheduler and workers as processes of their own, and an archive that was indexed on one machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

import service
from indexer import pipeline

DEMO = Path(service.__file__).parent / "demo" / "archive"
TAPES = DEMO / "skerry-radio"  # 13 recordings, 226 s: enough for a codebook of their own
START_S = 120.0  # that a process may take on a machine that is busy


class Cluster:
    """Starts and kills; all that it started is gone when it is left."""

    def __init__(self, folder: Path, host: str = "127.0.0.1", inside: Sequence[str] = ()) -> None:
        """`inside` is put before the commands: to run them in another namespace."""
        self.folder, self.host, self.inside = folder, host, inside
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"tcp://{host}:{self.port}"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.workers: list[subprocess.Popen[bytes]] = []
        self.scheduler: subprocess.Popen[bytes] | None = None

    def start_scheduler(self) -> None:
        self.scheduler = self._start(
            "scheduler", "--host", self.host, "--port", str(self.port), "--no-dashboard",
            DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="0",  # Dask gives up whatever a dead worker had
        )  # fmt: skip

    def start_worker(self, *options: str, inside: Sequence[str] = (), **environment: str) -> subprocess.Popen[bytes]:
        """One that is started again where it dies, unless its nanny dies with it."""
        worker = self._start(
            "worker", self.address, "--nthreads", "1", "--no-dashboard", "--local-directory", str(self.folder),
            *options, inside=inside, **environment,
        )  # fmt: skip
        self.workers.append(worker)
        return worker

    def kill(self, process: subprocess.Popen[bytes] | None) -> None:
        """With all that it has started, as if its machine had lost its power."""
        assert process is not None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(START_S)

    def _start(self, what: str, *words: str, inside: Sequence[str] = (), **environment: str) -> subprocess.Popen[bytes]:
        log = (self.folder / f"{what}-{len(self.processes)}.log").open("wb")
        process = subprocess.Popen(
            [*(inside or self.inside), sys.executable, "-m", f"distributed.cli.dask_{what}", *words],
            stdout=log, stderr=log, env={**os.environ, **environment}, start_new_session=True,
        )  # fmt: skip
        log.close()
        self.processes.append(process)
        return process

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(START_S)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A scheduler and two workers."""
    folder = tmp_path / "dask"
    folder.mkdir()
    cluster = Cluster(folder)
    cluster.start_scheduler()
    cluster.start_worker()
    cluster.start_worker()
    yield cluster
    cluster.close()


@pytest.fixture(scope="session")
def alone(server: Engine, tokenizer_path: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, ...]]:
    """All rows of an archive as one machine makes them."""
    from tests.conftest import _fresh

    found: list[tuple[Any, ...]] = []
    for engine in _fresh(server, tmp_path_factory.mktemp("alone"), "template_test"):
        pipeline.index_archive(engine, [TAPES], "demo", tokenizer_path, workers=2)
        found = rows(engine)
    return found


def rows(engine: Engine, *, paths: bool = True, ids: bool = True) -> list[tuple[Any, ...]]:
    """Everything that is stored of all archives but moments and the order in which recordings came."""
    where = "recording.path, recording.mtime_ns," if paths else ""
    number = "recording.id," if ids else ""
    with engine.connect() as connection:
        return [
            tuple(row)
            for statement in (
                """
                SELECT archive.name, recordings, segments, round(audio_s::numeric, 6), tokenizer.sha256, codebook.kind,
                    codebook.sha256, codebook.parameters::text
                FROM archive JOIN tokenizer ON tokenizer.id = tokenizer_id JOIN codebook ON codebook.id = codebook_id
                ORDER BY archive.name
                """,
                f"""
                SELECT {number} recording.name, {where} bytes, content_sha256, duration_s, recording.segments,
                    metadata::text FROM recording ORDER BY recording.name
                """,
                f"""
                SELECT {number} recording.name, position, start_s, frames, tokens, checksum
                FROM segment JOIN recording ON recording.id = recording_id ORDER BY recording.name, position
                """,
            )
            for row in connection.execute(text(statement))
        ]


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)
