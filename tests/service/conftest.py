"""A real service over the demo archive: indexed once through the command line, then asked by all."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient

import service
from model import audio
from service.app import create_app
from service.settings import Settings

DEMO = Path(service.__file__).parent / "demo"

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def run_cli(home: Path, tokenizer: Path, *words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """One run of `sayagain` in its own process."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("SAYAGAIN_")}
    clean |= {"SAYAGAIN_HOME": str(home), "SAYAGAIN_TOKENIZER": str(tokenizer), "COLUMNS": "200", **environment}
    return subprocess.run(
        [sys.executable, "-m", "service", *map(str, words)], env=clean, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="session")
def demo_home(tmp_path_factory: pytest.TempPathFactory, tokenizer_path: Path) -> Path:
    """A home whose archive `demo` holds the demo recordings."""
    home = tmp_path_factory.mktemp("home")
    done = run_cli(home, tokenizer_path, "index", DEMO / "archive", "--archive", "demo", "--json")
    assert done.returncode == 0, done.stderr
    return home


@pytest.fixture(scope="session")
def cli(demo_home: Path, tokenizer_path: Path) -> Run:
    """`sayagain` with the demo's home."""

    def run(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        return run_cli(demo_home, tokenizer_path, *words, **environment)

    return run


@pytest.fixture(scope="session")
def settings(demo_home: Path, tokenizer_path: Path) -> Settings:
    return Settings(home=demo_home, database_url=None, tokenizer=tokenizer_path, threads=1, _env_file=None)


@pytest.fixture(scope="session")
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="session")
def query_path() -> Path:
    return DEMO / "query.opus"


@pytest.fixture(scope="session")
def query(query_path: Path) -> np.ndarray:
    return audio.read(query_path)


@contextmanager
def serving(settings: Settings) -> Iterator[str]:
    """A service, and where it listens."""
    with listening(create_app(settings)) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="session")
def base_url(settings: Settings) -> Iterator[str]:
    """Where the service with the demo archive listens."""
    with serving(settings) as url:
        yield url


@contextmanager
def listening(app: FastAPI) -> Iterator[int]:
    """A server on a port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning", timeout_graceful_shutdown=10))
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        assert time.monotonic() < deadline
        assert thread.is_alive()
        time.sleep(0.05)
    try:
        yield port
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()
