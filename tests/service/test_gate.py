"""The gate: what is refused before a request's body, and when a body is cut off."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from anyio import to_thread
from fastapi import APIRouter, FastAPI, Request
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from indexer import database
from service import keys
from service.access import READ, WRITE
from service.app import create_app
from service.deps import Backend
from service.gate import Gate, body_up_to
from service.keys import Scope
from service.settings import Settings
from tests.conftest import database_url
from tests.service.conftest import listening

Make = Callable[..., str]
Answer = tuple[int, str, http.client.HTTPMessage]


@pytest.fixture
def own(engine: Engine, tokenizer_path: Path, tmp_path: Path) -> Settings:
    """A database of its own, with nothing in it, and limits that are soon reached."""
    return Settings(
        home=tmp_path, database_url=database_url(engine, str(engine.url.database)), tokenizer=tokenizer_path, threads=1,
        max_request_mb=0.1, max_in_flight=3, body_timeout_s=0.6, _env_file=None,
    )  # fmt: skip


@pytest.fixture
def port(own: Settings) -> Iterator[int]:
    with listening(create_app(own)) as port:
        yield port


@pytest.fixture
def make(engine: Engine) -> Make:
    def create(scope: Scope = Scope.READ, per_minute: int | None = None) -> str:
        with database.connect(engine) as connection, connection.begin():
            return keys.create(connection, f"for {scope.name.lower()}", scope, per_minute)

    return create


class Wire:
    """A connection on which a request is written piece by piece."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=10)

    def head(self, method: str, path: str, **headers: object) -> "Wire":
        lines = [f"{method} {path} HTTP/1.1", "Host: here"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        return self.send("\r\n".join([*lines, "", ""]).encode())

    def send(self, data: bytes) -> "Wire":
        self._socket.sendall(data)
        return self

    def chunk(self, data: bytes) -> "Wire":
        return self.send(b"%x\r\n%s\r\n" % (len(data), data))

    def answer(self) -> Answer:
        """Status, the error's code, and the headers."""
        response = http.client.HTTPResponse(self._socket)
        response.begin()
        body = json.loads(response.read())
        return response.status, body["error"]["code"] if "error" in body else "", response.headers

    def goes_on(self) -> None:
        """The body is wanted."""
        assert self._socket.recv(100).startswith(b"HTTP/1.1 100 ")

    def is_closed(self) -> bool:
        """Whether the server has hung up."""
        try:
            return self._socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self._socket.close()


@contextmanager
def wire(port: int) -> Iterator[Wire]:
    opened = Wire(port)
    try:
        yield opened
    finally:
        opened.close()


FORM = "multipart/form-data; boundary=xx"


def test_without_a_good_key_a_body_is_not_waited_for(port: int, make: Make) -> None:
    reader, spent = make(), make(per_minute=1)
    with wire(port) as first:
        assert first.head("GET", "/v1/archives", Authorization=f"Bearer {spent}").answer()[0] == 200
    refusals = [
        ("POST", "/v1/search", None, 401, "key_missing"),
        ("POST", "/v1/search", "wrong", 401, "key_missing"),
        ("POST", "/v1/archives", reader, 403, "key_forbidden"),
        ("POST", "/v1/search", spent, 429, "too_many_requests"),
    ]
    for method, path, key, status, code in refusals:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        for length in ({"Content_Length": 90_000}, {"Transfer_Encoding": "chunked"}):
            with wire(port) as asking:
                answer = asking.head(method, path, Content_Type=FORM, **headers, **length).answer()
                assert answer[:2] == (status, code)
                assert answer[2]["connection"] == "close"
                assert "x-content-type-options" in answer[2]
                assert ("www-authenticate" in answer[2]) == (status == 401)
                assert ("retry-after" in answer[2]) == (status == 429)
                assert asking.is_closed()


def test_a_client_that_asks_whether_to_go_on_is_told_no_at_once(port: int, make: Make) -> None:
    make()
    with wire(port) as asking:
        asking.head("POST", "/v1/search", Content_Type=FORM, Content_Length=90_000, Expect="100-continue")
        assert asking.answer()[0] == 401  # 100 would have come first
        assert asking.is_closed()


def test_a_refusal_without_a_body_leaves_the_connection_open(port: int, make: Make) -> None:
    key = make()
    with wire(port) as asking:
        assert asking.head("GET", "/v1/archives").answer()[0] == 401
        assert asking.head("GET", "/v1/archives", Authorization=f"Bearer {key}").answer()[0] == 200


def test_what_is_not_there_is_said_without_a_key(port: int, make: Make) -> None:
    make()
    with wire(port) as asking:
        assert asking.head("GET", "/v1/nothing").answer()[:2] == (404, "not_found")
        assert asking.head("PATCH", "/v1/archives").answer()[:2] == (405, "method_not_allowed")
        assert asking.head("OPTIONS", "/v1/archives").answer()[:2] == (405, "method_not_allowed")
        assert asking.head("GET", "/healthz").answer()[0] == 200


@pytest.mark.parametrize("path", ["/v1/archives/", "/v1//archives", "/v1/archives/%2e%2e/archives", "/sub/v1/archives"])
def test_no_way_of_writing_a_path_leads_around_the_gate(own: Settings, make: Make, path: str) -> None:
    make()
    with TestClient(create_app(own), root_path="/sub" if path.startswith("/sub") else "") as client:
        assert client.get(path).status_code in (401, 404)
        assert client.post("/v1/search/", follow_redirects=True).status_code == 401


def test_an_announced_body_that_is_too_large_is_refused_at_once(port: int) -> None:
    with wire(port) as asking:
        answer = asking.head("POST", "/v1/search", Content_Type=FORM, Content_Length=100_001).answer()
        assert (answer[:2], answer[2]["connection"]) == ((413, "upload_too_large"), "close")
        assert asking.is_closed()
    with wire(port) as asking:
        asking.head("POST", "/v1/search", Content_Type=FORM, Content_Length=100_000).send(b"-" * 100_000)
        assert asking.answer()[0] in (400, 422)  # so much is read, and makes no sense


def test_a_body_without_a_length_is_cut_off_where_it_grows_too_large(port: int) -> None:
    with wire(port) as asking:
        asking.head("POST", "/v1/archives", Content_Type="application/json", Transfer_Encoding="chunked")
        asking.chunk(b" " * 60_000).chunk(b" " * 40_001)
        answer = asking.answer()
        assert (answer[:2], answer[2]["connection"]) == ((413, "upload_too_large"), "close")
        assert asking.is_closed()
    with wire(port) as asking:
        asking.head("POST", "/v1/archives", Content_Type="application/json", Transfer_Encoding="chunked")
        asking.chunk(b'{"name": "a"' + b" " * 90_000).chunk(b"}").chunk(b"")
        assert asking.answer()[0] == 201


def test_a_body_that_stops_or_drips_is_given_up(port: int) -> None:
    stop = threading.Event()
    with wire(port) as stopped, wire(port) as dripping:
        began = time.monotonic()
        for asking in (stopped, dripping):
            asking.head("POST", "/v1/search", Content_Type=FORM, Content_Length=90_000).send(b"--xx\r\n")

        def drip() -> None:
            with suppress(OSError):
                while not stop.wait(0.1):
                    dripping.send(b"a")

        thread = threading.Thread(target=drip)
        thread.start()
        for asking in (stopped, dripping):
            answer = asking.answer()
            assert 0.5 < time.monotonic() - began < 5
            assert (answer[:2], answer[2]["connection"]) == ((408, "request_timeout"), "close")
        stop.set()
        thread.join()
        assert stopped.is_closed()


def test_a_slow_answer_is_not_a_slow_body(own: Settings) -> None:
    router = APIRouter(prefix="/v1")

    @router.post("/slow")
    async def slow(request: Request) -> bool:
        await request.body()
        await to_thread.run_sync(time.sleep, 1.0)
        return await request.is_disconnected()

    with running(own, router) as client:
        answer = client.post("/v1/slow", content=b"a")
        assert (answer.status_code, answer.json()) == (200, False)


def test_more_requests_than_are_answered_at_a_time_are_told_to_come_again(port: int) -> None:
    whole = {"Content_Type": FORM, "Content_Length": 100}
    with wire(port) as asking:
        for _ in range(2):  # those that went away count no more
            with ExitStack() as held:
                for _ in range(3):
                    held.enter_context(wire(port)).head("POST", "/v1/search", **whole, Expect="100-continue").goes_on()
                answer = asking.head("GET", "/v1/archives").answer()
                assert (answer[:2], answer[2]["retry-after"]) == ((429, "too_busy"), "1")
                assert asking.head("GET", "/healthz").answer()[0] == 200
            deadline = time.monotonic() + 0.4  # sooner than they would have been given up
            while asking.head("GET", "/v1/archives").answer()[0] != 200:
                assert time.monotonic() < deadline


def test_so_many_threads_are_at_work(own: Settings) -> None:
    with TestClient(create_app(own.model_copy(update={"max_threads": 3}))) as client:
        limiter = client.portal.call(to_thread.current_default_thread_limiter)
        assert limiter.total_tokens == 3


@contextmanager
def running(settings: Settings, *routers: APIRouter, gate: bool = True) -> Iterator[TestClient]:
    """An application of these routers alone."""
    app = FastAPI()
    for router in routers:
        app.include_router(router, dependencies=[READ])
    if gate:
        app.add_middleware(Gate, routers=routers)
    app.state.backend = Backend.open(settings)
    try:
        with TestClient(app, raise_server_exceptions=False) as client:
            yield client
    finally:
        app.state.backend.close()


def counting() -> APIRouter:
    """Routes that say how much they were sent; one may be sent more."""
    router = APIRouter(prefix="/v1")

    async def count(request: Request) -> int:
        return len(await request.body())

    router.post("/usual", dependencies=[WRITE])(count)
    router.post("/large", dependencies=[WRITE, body_up_to("max_recordings_mb")])(count)
    return router


def test_a_route_may_take_larger_bodies(own: Settings) -> None:
    settings = own.model_copy(update={"max_recordings_mb": 0.5})
    with running(settings, counting()) as client:
        for path, most in (("/v1/usual", 100_000), ("/v1/large", 500_000)):
            for size, status in ((most, 200), (most + 1, 413)):
                assert client.post(path, content=b"a" * size).status_code == status
                assert client.post(path, content=iter([b"a" * size])).status_code == status
        assert client.post("/v1/large", content=b"a" * 200_000).json() == 200_000


def test_without_a_gate_nothing_is_open(own: Settings) -> None:
    with running(own, counting(), gate=False) as client:
        assert client.post("/v1/usual", content=b"a").status_code == 500


def test_pages_of_other_origins_may_ask_where_the_settings_name_them(own: Settings, make: Make) -> None:
    make()
    preflight = {
        "Origin": "https://there.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    with TestClient(create_app(own)) as client:
        assert client.options("/v1/search", headers=preflight).status_code == 405
        assert "access-control-allow-origin" not in client.get("/healthz", headers=preflight).headers
    named = own.model_copy(update={"cors_origins": ["https://there.example"]})
    with TestClient(create_app(named)) as client:
        allowed = client.options("/v1/search", headers=preflight)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == "https://there.example"
        assert "authorization" in allowed.headers["access-control-allow-headers"].lower()
        refused = client.post("/v1/search", headers=preflight)  # which the page can read
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://there.example"
        assert "X-Request-ID" in refused.headers["access-control-expose-headers"]
        others = client.options("/v1/search", headers=preflight | {"Origin": "https://elsewhere.example"})
        assert "access-control-allow-origin" not in others.headers
