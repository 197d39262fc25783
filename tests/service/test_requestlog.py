"""Request ids and the line that is logged for each request, over a real HTTP server."""

import asyncio
import http.client
import json
import logging
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator

import pytest
import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from indexer import database
from service import keys
from service.app import create_app
from service.keys import Scope
from service.logs import JsonFormatter, TextFormatter
from service.requestlog import HEADER, Handled, RequestLog, request_id
from service.settings import Settings
from tests.conftest import database_url

handled: list[Handled] = []


class App(FastAPI):
    def build_middleware_stack(self):
        return RequestLog(super().build_middleware_stack(), handled.append)


app = App()


@app.get("/things/{name}")
def thing(name: str) -> str:
    logging.getLogger("sayagain").info("about %s", name)  # in a thread of its own
    return request_id.get() or ""


@app.get("/stream")
async def stream(parts: int) -> StreamingResponse:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(parts):
            yield b"x" * 10_000
            await asyncio.sleep(0.01)

    return StreamingResponse(body())


@app.get("/breaks")
def breaks() -> None:
    raise ZeroDivisionError


@app.get("/breaks-off")
async def breaks_off() -> StreamingResponse:
    async def body() -> AsyncIterator[bytes]:
        yield b"x" * 100
        raise ZeroDivisionError

    return StreamingResponse(body())


@app.get("/refuses")
def refuses() -> None:
    raise HTTPException(418)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive()


@pytest.fixture(autouse=True)
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "sayagain")
    handled.clear()
    return caplog


def line(caplog: pytest.LogCaptureFixture) -> dict:
    """The fields of the one request, as soon as it has ended."""
    deadline = time.monotonic() + 10
    while not (found := [r for r in caplog.records if r.name == "sayagain.requests"]):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (record,) = found
    return {**record.fields, "message": record.getMessage(), "level": record.levelname}


def get(port: int, path: str, **headers: str) -> tuple[int, str | None, bytes]:
    before = len(handled)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        try:
            body = answer.read()
        except http.client.IncompleteRead as part:
            body = part.partial
    finally:
        connection.close()
    deadline = time.monotonic() + 10
    while len(handled) == before:  # a client has its answer a moment before the server tells of it
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return answer.status, answer.headers[HEADER], body


def test_a_request_is_one_line_with_its_route_and_its_path_and_no_query(
    port: int, logged: pytest.LogCaptureFixture
) -> None:
    status, number, body = get(port, "/things/ice?token=secret", Authorization="Bearer secret")
    assert (status, json.loads(body)) == (200, number)
    assert number is not None
    assert len(number) == 32
    told = line(logged)
    assert told.pop("ms") < 5_000
    assert told.pop("message").startswith("GET /things/ice 200, ")
    assert told == {
        "method": "GET", "route": "/things/{name}", "path": "/things/ice", "status": 200, "bytes": len(body),
        "client": "127.0.0.1", "key": None, "aborted": False, "level": "INFO",
    }  # fmt: skip
    assert "secret" not in logged.text
    assert [(h.method, h.route, h.status) for h in handled] == [("GET", "/things/{name}", 200)]
    assert 0 < handled[0].seconds < 5


@pytest.mark.parametrize("given", ["a", "Az09._-", "x" * 100])
def test_a_sane_id_is_kept(port: int, given: str) -> None:
    assert get(port, "/things/a", **{HEADER: given})[1] == given


@pytest.mark.parametrize("given", ["", "x" * 101, "a b", "a;b", "ä", 'a"}'])
def test_another_id_is_replaced(port: int, given: str) -> None:
    number = get(port, "/things/a", **{HEADER: given})[1]
    assert number is not None
    assert number != given
    assert len(number) == 32


def test_ids_differ(port: int) -> None:
    assert len({get(port, "/things/a")[1] for _ in range(20)}) == 20


def test_lines_of_a_request_carry_its_id_also_from_other_threads(port: int) -> None:
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    keep = Keep()
    keep.setFormatter(JsonFormatter())
    logging.getLogger("sayagain").addHandler(keep)
    try:
        get(port, "/things/one", **{HEADER: "first"})
        get(port, "/things/two", **{HEADER: "second"})
    finally:
        logging.getLogger("sayagain").removeHandler(keep)
    told = [one for one in map(json.loads, lines) if one["request_id"] in ("first", "second")]
    assert [(t["logger"], t["request_id"]) for t in told] == [
        ("sayagain", "first"), ("sayagain.requests", "first"), ("sayagain", "second"), ("sayagain.requests", "second"),
    ]  # fmt: skip
    assert told[1]["status"] == 200
    assert request_id.get() is None


def test_a_stream_is_told_of_when_it_ends(port: int, logged: pytest.LogCaptureFixture) -> None:
    body = get(port, "/stream?parts=20")[2]
    told = line(logged)
    assert (told["status"], told["bytes"], told["aborted"]) == (200, len(body), False)
    assert len(body) == 200_000
    assert told["ms"] >= 200


def test_a_client_that_hangs_up_is_told_of(port: int, logged: pytest.LogCaptureFixture) -> None:
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET /stream?parts=100000 HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.recv(100)
    told = line(logged)
    assert (told["status"], told["aborted"]) == (200, True)
    assert 10_000 <= told["bytes"] < 100_000 * 10_000
    assert told["message"].endswith(", which went away")


def test_a_fault_of_ours_is_told_of_with_its_id_in_the_answer(port: int, logged: pytest.LogCaptureFixture) -> None:
    status, number, _ = get(port, "/breaks", **{HEADER: "mine"})
    assert (status, number) == (500, "mine")
    told = line(logged)
    assert (told["status"], told["route"]) == (500, "/breaks")


def test_an_answer_that_breaks_off_is_told_of(port: int, logged: pytest.LogCaptureFixture) -> None:
    assert get(port, "/breaks-off")[2] == b"x" * 100
    told = line(logged)
    assert (told["status"], told["bytes"]) == (200, 100)


@pytest.mark.parametrize(
    ("path", "status", "route"), [("/refuses", 418, "/refuses"), ("/nowhere", 404, "none"), ("/%0Afake", 404, "none")]
)
def test_errors_are_told_of(port: int, logged: pytest.LogCaptureFixture, path: str, status: int, route: str) -> None:
    assert get(port, path)[0] == status
    told = line(logged)
    assert (told["status"], told["route"]) == (status, route)
    assert "\n" not in told["message"]


def test_the_service_names_the_key_and_logs_faults_of_its_own_with_the_id(
    engine: Engine,
    tokenizer_path,
    tmp_path,
    logged: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = database_url(engine, str(engine.url.database))
    settings = Settings(home=tmp_path, database_url=url, tokenizer=tokenizer_path, threads=1, _env_file=None)
    with database.connect(engine) as connection, connection.begin():
        key = keys.create(connection, "the lab", Scope.READ)
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    keep = Keep()
    keep.setFormatter(JsonFormatter())
    logging.getLogger("sayagain").addHandler(keep)
    try:
        with TestClient(create_app(settings), raise_server_exceptions=False) as client:
            headers = {"Authorization": f"Bearer {key}", HEADER: "one"}
            assert client.get("/v1/archives/no%20where", headers=headers).headers[HEADER] == "one"
            monkeypatch.setattr("indexer.store.list_archives", None)
            broken = client.get("/v1/archives", headers=headers)
    finally:
        logging.getLogger("sayagain").removeHandler(keep)
    assert (broken.status_code, broken.headers[HEADER]) == (500, "one")
    assert broken.headers["X-Content-Type-Options"] == "nosniff"
    assert broken.json()["error"]["code"] == "internal_error"
    told = [json.loads(text) for text in lines]
    first, fault, last = told
    assert (first["key"], first["path"], first["status"]) == ("the lab", "/v1/archives/no where", 404)
    assert first["route"].startswith("/v1/archives/{")
    assert (fault["request_id"], fault["level"], last["status"]) == ("one", "error", 500)
    assert "NoneType" in fault["exception"]
    assert "\n" in fault["exception"]
    assert key not in "".join(lines)


def test_text_lines_have_time_level_logger_and_id() -> None:
    record = logging.LogRecord("sayagain.x", logging.WARNING, "", 0, "%d left", (3,), None)
    record.created = 1_700_000_000.25
    assert TextFormatter().format(record) == "2023-11-14T22:13:20.250+00:00 WARNING sayagain.x 3 left"
    token = request_id.set("abc")
    try:
        assert TextFormatter().format(record).endswith("WARNING sayagain.x [abc] 3 left")
        assert json.loads(JsonFormatter().format(record)) == {
            "time": "2023-11-14T22:13:20.250+00:00", "level": "warning", "logger": "sayagain.x", "message": "3 left",
            "request_id": "abc", "pid": os.getpid(),
        }  # fmt: skip
    finally:
        request_id.reset(token)
