"""A primary and a streaming replica: reads follow, writes go home, the lag is shown, and answers go on without it."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr
from sqlalchemy import Engine, create_engine, text

from indexer import database, pipeline
from indexer.server import PORT, USER, Server
from service.app import create_app
from service.settings import Settings
from tests.service.conftest import DEMO

LONG_S = 60.0
STREAMING = {"wal_level": "replica", "max_wal_senders": "4", "hot_standby": "on"}


class Streaming(Server):
    """A server that streams, or is streamed to."""

    options = STREAMING

    def start_streaming(self) -> None:
        if self.owner is not None:
            from indexer.server import _let_through

            _let_through(self.owner, self.programs / "postgres", self.data)
        if not (self.data / "PG_VERSION").exists():
            self._initialise()
        settings = {**STREAMING, "listen_addresses": "", "unix_socket_directories": str(self.data), "io_method": "sync"}
        words = " ".join(f"-c {name}='{value}'" for name, value in settings.items())
        done = self._run(
            "pg_ctl", "start", "-D", str(self.data), "-w", "-s", "-l", f"{self.data}/server.log", "-o", words
        )
        assert done.returncode == 0, (self.data / "server.log").read_text()[-2_000:]

    def follow(self, primary: Server) -> None:
        """Made as a copy of another server, which it streams from."""
        self.data.parent.mkdir(exist_ok=True)
        if self.owner is not None:
            shutil.chown(self.data.parent, self.owner.pw_uid, self.owner.pw_gid)
        done = self._run(
            "pg_basebackup",
            "-D",
            str(self.data),
            "-h",
            str(primary.data),
            "-U",
            USER,
            "-R",
            "-X",
            "stream",
            "-c",
            "fast",
        )
        assert done.returncode == 0, done.stdout + done.stderr
        (self.data / f".s.PGSQL.{PORT}.lock").unlink()  # the primary's, which lies beside its socket

    @property
    def url(self) -> str:
        return f"postgresql://{USER}@/postgres?host={self.data}&port={PORT}"

    def crash(self) -> None:
        os.kill(int(self.pid_lines()[0]), signal.SIGQUIT)


@pytest.fixture(scope="module")
def primary() -> Iterator[Streaming]:
    with tempfile.TemporaryDirectory(prefix="sayagain-test-") as folder:
        server = Streaming(Path(folder) / "primary")
        server.start_streaming()
        yield server
        server.stop()


@pytest.fixture
def replica(primary: Streaming) -> Iterator[Streaming]:
    with tempfile.TemporaryDirectory(prefix="sayagain-test-") as folder:
        os.chmod(folder, 0o711)
        server = Streaming(Path(folder) / "in" / "replica")
        server.follow(primary)
        server.start_streaming()
        yield server
        server.stop()


@pytest.fixture(scope="module")
def indexed(primary: Streaming, tokenizer_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    engine = database.open_engine(tmp_path_factory.mktemp("primary"), primary.url)
    database.migrate(engine)
    pipeline.index_archive(engine, [DEMO / "archive" / "field-notes"], "radio", tokenizer_path, codebook="tokenizer")
    engine.dispose()


@pytest.fixture
def client(
    primary: Streaming, replica: Streaming, indexed: None, tokenizer_path: Path, tmp_path: Path
) -> Iterator[TestClient]:
    settings = Settings(
        home=tmp_path, database_url=SecretStr(primary.url), replica_url=SecretStr(replica.url), replica_lag_s=1.0,
        tokenizer=tokenizer_path, threads=1, run_jobs=False, _env_file=None,
    )  # fmt: skip
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


def asked(server: Server) -> int:
    """Statements that a server has seen of services that read."""
    engine = engine_of(server)
    with engine.connect() as connection:
        count = connection.execute(
            text("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'sayagain reads'")
        ).scalar_one()
    engine.dispose()
    return int(count)


def engine_of(server: Server) -> Engine:
    return create_engine(f"postgresql+psycopg://{USER}@/postgres?host={server.data}&port={PORT}")


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def search(client: TestClient) -> list[str]:
    with (DEMO / "query.opus").open("rb") as clip:
        answer = client.post("/v1/search", data={"archive": "radio", "limit": 3}, files={"file": clip})
    assert answer.status_code == 200, answer.text
    return [hit["recording"]["name"] for hit in answer.json()["hits"]]


def names(client: TestClient) -> list[str]:
    return [archive["name"] for archive in client.get("/v1/archives").json()["archives"]]


def pause(replica: Server, *, on: bool) -> None:
    """Let it receive and not replay: a replica that is behind."""
    engine = engine_of(replica)
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_wal_replay_pause()" if on else "SELECT pg_wal_replay_resume()"))
        if on:  # it is asked for, not done
            until(lambda: connection.execute(text("SELECT pg_get_wal_replay_pause_state()")).scalar_one() == "paused")
    engine.dispose()


def test_reads_follow_and_writes_go_home(client: TestClient, primary: Streaming, replica: Streaming) -> None:
    before = search(client)
    assert len(before) == 3
    assert asked(replica) > 0
    assert asked(primary) == 0  # the service's other connections are named otherwise
    pause(replica, on=True)
    try:
        made = client.post("/v1/archives", json={"name": "later"})
        assert made.status_code == 201, made.text  # read from where it was written
        assert names(client) == ["radio"]  # the list may be a moment old, and here is
        client.patch(f"/v1/recordings/{first(client)}", json={"metadata": {"year": 1962}})
        listed = client.get("/v1/recordings", params={"archive": "radio"}).json()["recordings"]
        assert not any(recording["metadata"] for recording in listed)
        assert search(client) == before
    finally:
        pause(replica, on=False)
    until(lambda: names(client) == ["later", "radio"])
    assert client.delete("/v1/archives/later").status_code == 204
    until(lambda: names(client) == ["radio"])


def first(client: TestClient) -> int:
    return int(client.get("/v1/recordings", params={"archive": "radio"}).json()["recordings"][0]["id"])


def test_readiness_shows_how_far_it_is_behind(client: TestClient, replica: Streaming) -> None:
    until(lambda: client.get("/readyz").json()["replica"] == {"state": "ok", "lag_seconds": 0.0, "lag_bytes": 0})
    pause(replica, on=True)
    try:
        client.post("/v1/archives", json={"name": "behind"})

        def is_told() -> bool:
            told = client.get("/readyz").json()
            if "sayagain_replica_up 1.0" not in client.get("/metrics").text:
                return False
            return (
                told["ready"]
                and told["replica"]["state"] == "behind"
                and told["replica"]["lag_seconds"] > 1.0
                and told["replica"]["lag_bytes"] > 0
                and any("the replica is" in warning for warning in told["warnings"])
            )

        until(is_told)
    finally:
        pause(replica, on=False)
    until(lambda: client.get("/readyz").json()["replica"]["state"] == "ok")
    client.delete("/v1/archives/behind")


def test_answers_go_on_without_it(client: TestClient, primary: Streaming, replica: Streaming) -> None:
    before = search(client)
    replica.crash()
    until(lambda: not replica.running())
    assert search(client) == before
    assert names(client) == ["radio"]
    assert client.get(f"/v1/recordings/{first(client)}/peaks", params={"end": 1}).status_code == 200
    told = client.get("/readyz").json()
    assert told["ready"]
    assert told["replica"]["state"] == "unavailable"
    assert "sayagain_replica_up 0.0" in client.get("/metrics").text
    assert any("replica" in warning for warning in told["warnings"])
    replica.start_streaming()
    until(lambda: bool(search(client)) and asked(replica) > 0)  # and it is asked again


def test_a_server_that_is_no_replica_is_told_of(
    primary: Streaming, indexed: None, tokenizer_path: Path, tmp_path: Path
) -> None:
    settings = Settings(
        home=tmp_path, database_url=SecretStr(primary.url), replica_url=SecretStr(primary.url),
        tokenizer=tokenizer_path, threads=1, run_jobs=False, _env_file=None,
    )  # fmt: skip
    with TestClient(create_app(settings)) as client:
        told = client.get("/readyz").json()
    assert any("it is no replica" in warning for warning in told["warnings"])
