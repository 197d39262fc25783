"""/readyz: why a service is not ready, or what it warns of; in time whatever hangs."""

import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnxruntime
import psutil
import pytest
from fastapi.testclient import TestClient
from httpx import Response
from pydantic import SecretStr
from sqlalchemy import Engine, text

from indexer import database
from indexer.server import PORT, USER, Server
from model.tokenizer import Tokenizer
from service.app import create_app
from service.settings import Settings
from tests.conftest import database_url

SOON_S = 1.5  # a second, and a busy machine


@pytest.fixture
def postgres() -> Iterator[Server]:
    """A PostgreSQL of the test's own, which may be stopped and started."""
    with tempfile.TemporaryDirectory(prefix="sayagain-test-") as folder:
        server = Server(Path(folder) / "postgres")
        server.start()
        try:
            yield server
        finally:
            server.stop()


def processes(postgres: Server) -> list[psutil.Process]:
    first = psutil.Process(int(postgres.pid_lines()[0]))
    return [first, *first.children()]


@pytest.fixture
def own(postgres: Server, tokenizer_path: Path, tmp_path: Path) -> Settings:
    url = f"postgresql://{USER}@/postgres?host={postgres.socket_folder()}&port={PORT}"
    engine = database.open_engine(tmp_path, url)
    database.migrate(engine)
    engine.dispose()
    return Settings(
        home=tmp_path, database_url=SecretStr(url), tokenizer=tokenizer_path, threads=1, run_jobs=False,
        metrics_open=True, max_threads=2, _env_file=None,
    )  # fmt: skip


@pytest.fixture
def client(own: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(own), raise_server_exceptions=False) as client:
        yield client


def timed(client: TestClient, path: str) -> Response:
    """The answer, which has come soon."""
    began = time.monotonic()
    answer = client.get(path)
    assert time.monotonic() - began < SOON_S
    return answer


def test_a_database_that_goes_away_and_comes_back(client: TestClient, postgres: Server) -> None:
    ready = client.get("/readyz")
    assert (ready.status_code, ready.json()) == (
        200, {"ready": True, "database": "ok", "tokenizer": "fast 5", "reasons": [], "warnings": []}
    )  # fmt: skip
    postgres.stop()
    gone = timed(client, "/readyz")
    assert (gone.status_code, gone.json()["ready"], gone.json()["database"]) == (503, False, "unavailable")
    assert "PostgreSQL does not answer" in gone.json()["reasons"][0]
    assert client.get("/v1/archives").json()["error"]["code"] == "database_unavailable"
    assert timed(client, "/healthz").status_code == 200
    assert "sayagain_database_up 0.0" in timed(client, "/metrics").text
    postgres.start()
    assert client.get("/readyz").json()["ready"]
    assert client.get("/v1/archives").status_code == 200


def test_a_database_that_hangs_holds_up_neither_health_nor_metrics(client: TestClient, postgres: Server) -> None:
    assert client.get("/v1/archives").status_code == 200  # a connection is in the pool
    hung = processes(postgres)
    for process in hung:
        process.suspend()
    asking = [threading.Thread(target=client.get, args=("/v1/archives",)) for _ in range(4)]
    try:
        for one in asking:  # more than there are threads
            one.start()
        time.sleep(0.3)
        for _ in range(2):  # a connection that does not come about is given up after five seconds
            ready = timed(client, "/readyz")
            assert (ready.status_code, ready.json()["database"]) == (503, "unavailable")
            assert ready.json()["reasons"] == ["the database does not answer within 0.8 s"]
            assert timed(client, "/healthz").json() == {"status": "ok"}
            assert "sayagain_database_up 0.0" in timed(client, "/metrics").text
        assert sum(thread.name == "sayagain-look" for thread in threading.enumerate()) == 1
    finally:
        for process in hung:
            process.resume()
        for one in asking:
            one.join()
    deadline = time.monotonic() + 20
    while client.get("/readyz").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_service_ends_while_its_database_hangs(own: Settings, postgres: Server) -> None:
    with TestClient(create_app(own)) as client:
        for process in processes(postgres):
            process.suspend()
        timed(client, "/readyz")
        began = time.monotonic()
    assert time.monotonic() - began < SOON_S
    for process in processes(postgres):
        process.resume()


def test_a_schema_that_is_not_the_current_one(client: TestClient, own: Settings) -> None:
    engine = database.open_engine(own.home_path, own.url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    engine.dispose()
    ready = client.get("/readyz")
    assert (ready.status_code, ready.json()["database"]) == (503, "outdated")
    assert "run `sayagain migrate`" in ready.json()["reasons"][0]


@pytest.fixture
def asked(engine: Engine, tmp_path: Path, tokenizer_path: Path) -> Settings:
    """Of a service on the server of all tests."""
    url = SecretStr(database_url(engine, str(engine.url.database)))
    home = tmp_path / "home"
    home.mkdir()
    return Settings(home=home, database_url=url, tokenizer=tokenizer_path, threads=1, run_jobs=False, _env_file=None)


def warnings(settings: Settings) -> list[str]:
    """Of a service that is ready all the same."""
    with TestClient(create_app(settings)) as client:
        ready = client.get("/readyz")
    assert (ready.status_code, ready.json()["ready"], ready.json()["reasons"]) == (200, True, [])
    found: list[str] = ready.json()["warnings"]
    return found


def test_archives_whose_tokenizer_is_not_at_hand_are_named(
    asked: Settings, engine: Engine, tokenizer_path: Path, tmp_path: Path
) -> None:
    model = onnx.load(str(tokenizer_path))
    model.doc_string = "another"
    onnx.save(model, str(tmp_path / "another.onnx"))
    add = text("""
        WITH made AS (
            INSERT INTO tokenizer (sha256, name, version, frame_seconds, dim) VALUES (:sha256, 'x', '1', 0.04, 8)
            RETURNING id
        )
        INSERT INTO archive (name, tokenizer_id) SELECT name, made.id FROM made, unnest(CAST(:names AS text[])) AS name
    """)
    with engine.begin() as connection:
        connection.execute(add, {"sha256": Tokenizer(tokenizer_path).info.sha256, "names": ["own"]})
        connection.execute(add, {"sha256": Tokenizer(tmp_path / "another.onnx").info.sha256, "names": ["lent"]})
    assert warnings(asked) == ["archives whose tokenizer is not at hand: 'lent'"]
    (asked.home / "tokenizers").mkdir()
    shutil.copy(tmp_path / "another.onnx", asked.home / "tokenizers")
    assert warnings(asked) == []
    with engine.begin() as connection:
        connection.execute(add, {"sha256": "0", "names": list("abcdefg")})
    assert warnings(asked) == ["archives whose tokenizer is not at hand: 'a', 'b', 'c', 'd', 'e' and 2 more"]


def test_a_data_folder_that_is_nearly_full_is_warned_of(asked: Settings) -> None:
    assert warnings(asked) == []
    (warning,) = warnings(asked.model_copy(update={"min_free_mb": 1e12}))
    assert warning.startswith("the data folder is nearly full: ")


def test_a_data_folder_that_cannot_be_written_is_warned_of(asked: Settings) -> None:
    with TestClient(create_app(asked)) as client:
        assert client.get("/readyz").json()["warnings"] == []
        shutil.rmtree(asked.home)
        ready = client.get("/readyz").json()
    assert ready["ready"]
    assert ready["warnings"] == ["nothing can be written in the data folder: No such file or directory"]


def test_a_device_that_is_not_there_is_warned_of(tmp_path: Path, tokenizer_path: Path, engine: Engine) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("there is one")
    settings = Settings(
        home=tmp_path, database_url=database_url(engine, str(engine.url.database)), tokenizer=tokenizer_path,
        threads=1, device="cuda", _env_file=None,
    )  # fmt: skip
    with TestClient(create_app(settings)) as client:
        told = client.get("/readyz").json()
    assert (told["ready"], told["warnings"]) == (
        True, ["no cuda device that ONNX Runtime can use: tokenizers run on the cpu"],
    )  # fmt: skip
