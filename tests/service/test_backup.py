"""What docs/operations.md says of backups: restored elsewhere, a search gives the very same answer."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from indexer import embedded
from indexer.server import USER, Server
from tests.service.conftest import DEMO, run_cli


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Where homes are: PostgreSQL's user has to get through to them, so not under pytest's own folder."""
    with tempfile.TemporaryDirectory(prefix="sayagain-test-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def home(folder: Path, tokenizer_path: Path) -> Path:
    """With an archive in its embedded server."""
    done = run_cli(folder / "old", tokenizer_path, "index", DEMO / "archive" / "kurzwelle", "--archive", "radio")
    assert done.returncode == 0, done.stderr
    return folder / "old"


def answer(home: Path, tokenizer: Path, clip: Path) -> dict:
    """A search's, without the time that it took."""
    done = run_cli(home, tokenizer, "search", clip, "--archive", "radio", "--json")
    assert done.returncode == 0, done.stderr
    found: dict = json.loads(done.stdout)
    del found["timing_ms"]
    assert len(found["hits"]) > 5
    return found


def digest(home: Path, tokenizer: Path) -> str:
    """Of all that the archive holds, which is verified."""
    done = run_cli(home, tokenizer, "check", "radio", "--contents", "--json")
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["digest"])


@contextmanager
def running(home: Path) -> Iterator[Server]:
    """Its server, as a service would keep it running."""
    embedded.join(home)
    try:
        yield Server(home / "postgres")
    finally:
        embedded.leave(home)


def run(*command: str | Path) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_a_dump_taken_while_the_server_runs(home: Path, folder: Path, tokenizer_path: Path, query_path: Path) -> None:
    expected = answer(home, tokenizer_path, query_path)
    dump = folder / "sayagain.dump"
    with running(home) as server:
        run(server.programs / "pg_dump", "-h", server.socket_folder(), "-U", USER, "-Fc", "-f", dump, "postgres")
    with running(folder / "new") as server:
        restore = ("-h", server.socket_folder(), "-U", USER, "-d", "postgres", "--clean", "--if-exists", "-1")
        run(server.programs / "pg_restore", *restore, dump)
        run(server.programs / "pg_restore", *restore, dump)  # over what is there already
    assert not (folder / "new" / "index").exists()
    assert answer(folder / "new", tokenizer_path, query_path) == expected
    assert digest(folder / "new", tokenizer_path) == digest(home, tokenizer_path)
    assert (folder / "new" / "index").exists()


def test_a_copy_of_the_data_folder_of_a_service_that_is_stopped(
    home: Path, folder: Path, tokenizer_path: Path, query_path: Path
) -> None:
    expected = answer(home, tokenizer_path, query_path)
    assert not (home / "postgres" / "postmaster.pid").exists()
    run("tar", "-C", folder, "-cf", folder / "home.tar", home.name)
    (folder / "elsewhere").mkdir()
    run("tar", "-C", folder / "elsewhere", "-xpf", folder / "home.tar")
    assert answer(folder / "elsewhere" / home.name, tokenizer_path, query_path) == expected
    shutil.rmtree(folder / "elsewhere")
