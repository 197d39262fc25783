"""What all tests share: the tokenizer, a real PostgreSQL, and sound files of every kind."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from indexer import database, embedded
from model.tokenizer import DEFAULT_WEIGHTS
from tests.indexer import sounds

_numbers = itertools.count()

ToneFile = Callable[..., Path]


@pytest.fixture(scope="session", autouse=True)
def no_server_is_left() -> Iterator[None]:
    """Of those that this process has joined: pytest's own processes end without a word to anybody."""
    yield
    for home in list(embedded._seats):
        embedded.leave(home)


@pytest.fixture(scope="session")
def tokenizer_path() -> Path:
    """The tokenizer that ships, or the one that SAYAGAIN_TOKENIZER names while there is none."""
    path = DEFAULT_WEIGHTS if DEFAULT_WEIGHTS.exists() else Path(os.environ.get("SAYAGAIN_TOKENIZER", "/nonexistent"))
    if not path.exists():
        pytest.skip("no tokenizer: neither model/weights/fast.onnx nor SAYAGAIN_TOKENIZER")
    return path


@pytest.fixture(scope="session")
def server_home() -> Iterator[Path]:
    """Not under pytest's own folder: another run of pytest takes everybody else's passage through that away."""
    with tempfile.TemporaryDirectory(prefix="sayagain-test-") as home:
        yield Path(home)


@pytest.fixture(scope="session")
def server(server_home: Path) -> Iterator[Engine]:
    """One embedded PostgreSQL for the whole run, with a template that has the schema."""
    home = server_home
    engine = database.open_engine(home, None)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("CREATE DATABASE template_test"))
    template = database.open_engine(home, database_url(engine, "template_test"))
    database.migrate(template)
    template.dispose()
    yield engine
    engine.dispose()
    embedded.leave(home)


@pytest.fixture
def engine(server: Engine, tmp_path: Path) -> Iterator[Engine]:
    """A database of its own for each test, with the schema and nothing in it."""
    yield from _fresh(server, tmp_path, "template_test")


@pytest.fixture
def empty_engine(server: Engine, tmp_path: Path) -> Iterator[Engine]:
    """A database of its own without a schema."""
    yield from _fresh(server, tmp_path, "template1")


@pytest.fixture
def tone_file(tmp_path: Path) -> ToneFile:
    """Makes a file of babble: tone_file("a.wav", seconds=3, seed=1, rate=8000, ...) under the test's folder."""

    def make(name: str, seconds: float = 2.0, seed: int = 0, **kinds: object) -> Path:
        path = tmp_path / "audio" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return sounds.write(path, sounds.babble(seconds, seed), **kinds)  # type: ignore[arg-type]

    return make


def database_url(engine: Engine, name: str) -> str:
    """The URL of another database on the same server."""
    return engine.url.set(database=name).render_as_string(hide_password=False)


def _fresh(server: Engine, tmp_path: Path, template: str) -> Iterator[Engine]:
    name = f"test_{next(_numbers)}"
    with server.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template}"))
    engine = database.open_engine(tmp_path, database_url(server, name))
    yield engine
    engine.dispose()
    with server.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
