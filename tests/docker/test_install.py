"""What the image does, step by step without an engine: wheel, fresh environment, external PostgreSQL, the server."""

from __future__ import annotations

import csv
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from indexer import server as postgres

ROOT = Path(__file__).parent.parent.parent
CONTEXT = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
START_S = 300  # until the server must answer: nothing is compiled yet, and other tests may run beside


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from no more than what .dockerignore lets through."""
    folder = tmp_path_factory.mktemp("build")
    for name in CONTEXT:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, folder / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder / "wheels"), "."]
    subprocess.run(pip, cwd=folder, check=True)
    (built,) = (folder / "wheels").glob("sayagain-*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that has the wheel with its cpu extra and nothing more."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    interpreter = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(interpreter), "install", "--quiet", "--no-compile"]
    subprocess.run([*pip, f"{wheel}[cpu]"], cwd=folder, check=True)
    return interpreter


@pytest.fixture(scope="module")
def database_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL that is not the service's own: over TCP, with a password, as compose has it."""
    data = tmp_path_factory.mktemp("external") / "postgres"
    server = postgres.Server(data)
    if server.owner is not None:
        postgres._let_through(server.owner, server.programs / "postgres", data)
    server._initialise()
    (data / "pg_hba.conf").write_text("local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    sockets = server._socket_folder()
    options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={sockets}"
    log = str(data / "server.log")
    started = server._run("pg_ctl", "start", "-D", str(data), "-w", "-s", "-l", log, "-o", options)
    assert started.returncode == 0, started.stderr
    try:
        password = secrets.token_hex(12)
        with psycopg.connect(
            host=sockets, port=port, user=postgres.USER, dbname="postgres", autocommit=True
        ) as connection:
            connection.execute(f"CREATE ROLE service LOGIN PASSWORD '{password}'")
            connection.execute("CREATE DATABASE service OWNER service")
        yield f"postgresql://service:{password}@127.0.0.1:{port}/service"
    finally:
        server.stop()


@pytest.fixture(scope="module")
def environment(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of the container: nothing of the checkout in it."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "SAYAGAIN_TOKENIZER")}
    home = str(tmp_path_factory.mktemp("data"))
    return kept | {"HOME": home, "SAYAGAIN_HOME": home, "SAYAGAIN_DATABASE_URL": database_url}


def test_the_wheel_has_what_the_image_needs_and_no_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "model/weights/fast.onnx" in names
    assert "migrations/env.py" in names
    assert [name for name in names if name.startswith("migrations/versions/") and name.endswith(".py")]
    assert {"service/demo/query.opus", "service/demo/truth.tsv"} <= set(names)
    assert sum(name.startswith("service/demo/archive/") for name in names) >= 40
    assert not [name for name in names if name.split("/")[0] in ("tests", "bench", "docker", "docs", "data", "build")]


def test_torch_is_neither_there_nor_missed(python: Path, tmp_path: Path) -> None:
    program = (
        "import importlib.util, sys, service.app; print('torch' in sys.modules, importlib.util.find_spec('torch'))"
    )
    run = subprocess.run([python, "-c", program], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert run.stdout.split() == ["False", "None"]


def test_migrate_index_serve_and_ask(python: Path, environment: dict[str, str], tmp_path: Path) -> None:
    sayagain = python.parent / "sayagain"
    installed = next(python.parent.parent.glob("lib/python*/site-packages/service/demo"))
    subprocess.run([sayagain, "migrate"], env=environment, cwd=tmp_path, check=True)
    index = [sayagain, "index", installed / "archive" / "skerry-radio", "--json"]
    report = json.loads(subprocess.run(index, env=environment, cwd=tmp_path, check=True, capture_output=True).stdout)
    assert (report["indexed"], report["failed"]) == (13, [])

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (tmp_path / "log").open("w") as log:
        command = [sayagain, "serve", "--host", "127.0.0.1", "--port", str(port)]
        serving = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=log, stderr=log)
    try:
        assert wait_for(f"http://127.0.0.1:{port}/healthz", serving) == 200, (tmp_path / "log").read_text()
        assert wait_for(f"http://127.0.0.1:{port}/readyz", serving) == 200, (tmp_path / "log").read_text()
        best = ask(port, installed / "query.opus")["hits"][0]
    finally:
        serving.terminate()
        ended = serving.wait(START_S)
    assert ended in (0, -15)

    with (installed / "truth.tsv").open(encoding="utf-8", newline="") as file:
        said = [row for row in csv.DictReader(file, delimiter="\t") if row["term"] == "visibility"]
    assert any(
        row["recording"] == f"skerry-radio/{best['recording']['name']}"
        and float(row["start"]) < best["end"]
        and float(row["end"]) > best["start"]
        for row in said
    ), best


def wait_for(url: str, process: subprocess.Popen[bytes]) -> int:
    """The status with which `url` answers as soon as it is 200, or the last one when time is up."""
    status = 0
    give_up = time.monotonic() + START_S
    while time.monotonic() < give_up and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            status = error.code
        except OSError:
            pass
        time.sleep(0.2)
    return status


def ask(port: int, clip: Path) -> dict[str, list[dict[str, object]]]:
    """The answer to a clip, posted as a form."""
    boundary = secrets.token_hex(8)
    body = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{clip.name}"\r\n\r\n'.encode()
        + clip.read_bytes()
        + f"\r\n--{boundary}--\r\n".encode()
    )
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/search", body, headers)
    with urllib.request.urlopen(request, timeout=START_S) as answer:
        return dict(json.load(answer))
