"""`sayagain serve` as a process: logs, several workers, the end of it in every way, and what stops it from starting."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from service import serving
from tests.service.test_cli import free_port
from tests.service.test_metrics import Found

READY_S = 120.0
Serve = Callable[..., "Service"]


@dataclass
class Service:
    """A running `sayagain serve`; what it logs goes to a file."""

    process: "subprocess.Popen[bytes]"
    url: str
    log: Path

    def get(self, path: str, **headers: str) -> httpx.Response:
        """Over a connection of its own: any worker may answer."""
        return httpx.get(self.url + path, headers=headers, timeout=30)

    def lines(self) -> list[dict]:
        """What has been logged as JSON."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def pids(self) -> set[int]:
        """The processes that have answered."""
        return {line["pid"] for line in self.lines() if line["logger"] == "sayagain.requests"}

    def all_answer(self, workers: int, but: int = 0) -> set[int]:
        """Ask until so many processes other than `but` have answered."""
        return until(lambda: self.get("/healthz") and (p := self.pids() - {but}) and len(p) >= workers and p)

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Tell it to end, and wait for it."""
        self.process.send_signal(how)
        return self.process.wait(60)


def until(condition: Callable[[], object], seconds: float = READY_S):
    """The condition's value as soon as it is true."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return value


@contextmanager
def served(home: Path, tokenizer: Path, log: Path, *words: str, **environment: str) -> Iterator[Service]:
    port = free_port()
    clean = {key: value for key, value in os.environ.items() if not key.startswith("SAYAGAIN_")}
    clean |= {"SAYAGAIN_HOME": str(home), "SAYAGAIN_TOKENIZER": str(tokenizer), "SAYAGAIN_THREADS": "1"}
    clean |= {"SAYAGAIN_LOG_FORMAT": "json", "TMPDIR": str(log.parent), **environment}
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "service", "serve", "--port", str(port), *words], env=clean, stderr=file
        )
    family = [psutil.Process(process.pid)]
    try:
        service = Service(process, f"http://127.0.0.1:{port}", log)

        def ready() -> bool:
            assert process.poll() is None, log.read_text()
            try:
                return service.get("/readyz").status_code == 200
            except httpx.TransportError:
                return False

        until(ready)
        family += family[0].children(recursive=True)
        yield service
    finally:
        for one in family:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()


@pytest.fixture
def serve(demo_home: Path, tokenizer_path: Path, tmp_path: Path) -> Iterator[Serve]:
    """Starts the service with the demo's archive."""
    with ExitStack() as held:
        yield lambda *words, **environment: held.enter_context(
            served(demo_home, tokenizer_path, tmp_path / "log", *words, **environment)
        )


def children(service: Service) -> list[psutil.Process]:
    return psutil.Process(service.process.pid).children(recursive=True)


def test_logs_are_json_lines_with_the_ids_of_requests(serve: Serve, query_path: Path) -> None:
    service = serve()
    answer = httpx.post(
        service.url + "/v1/search?token=secret",
        files={"file": query_path.read_bytes()},
        data={"archive": "demo"},
        headers={"X-Request-ID": "my-1", "Authorization": "Bearer secret"},
    )
    assert answer.headers["X-Request-ID"] == "my-1"
    assert service.get("/v1/archives/none").status_code == 404
    assert service.end() == 0
    lines = service.lines()  # each of them, also what the server says as it starts and ends
    assert {"uvicorn.error", "sayagain.requests"} <= {line["logger"] for line in lines}
    assert "uvicorn.access" not in {line["logger"] for line in lines}
    assert all(list(line)[:5] == ["time", "level", "logger", "message", "pid"] for line in lines)
    (asked,) = [line for line in lines if line.get("request_id") == "my-1"]
    assert (asked["method"], asked["route"], asked["status"]) == ("POST", "/v1/search", answer.status_code)
    assert asked["time"].endswith("+00:00")
    assert asked["bytes"] == len(answer.content)
    assert "secret" not in service.log.read_text()


def test_only_what_is_asked_for_is_logged_and_ctrl_c_ends_it(serve: Serve) -> None:
    service = serve(SAYAGAIN_LOG_LEVEL="WARNING", SAYAGAIN_LOG_FORMAT="text", SAYAGAIN_HOSTS="::")
    service.get("/nowhere")
    assert service.end(signal.SIGINT) == 0
    assert " INFO " not in service.log.read_text()
    assert "SAYAGAIN_HOSTS is no setting; did you mean SAYAGAIN_HOST?" in service.log.read_text()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_request_that_has_begun_is_answered_before_the_service_ends(
    serve: Serve, query_path: Path, workers: str
) -> None:
    service = serve("--workers", workers, SAYAGAIN_MAX_BATCH="150", SAYAGAIN_SHUTDOWN_S="200")
    clips = [("file", ("clip", query_path.read_bytes()))] * 150
    wanted = {"archive": "demo", "exact": "true", "limit": "1000"}
    answers: list[tuple[httpx.Response, float]] = []

    def ask() -> None:
        answer = httpx.post(service.url + "/v1/search/batch", files=clips, data=wanted, timeout=200)
        answers.append((answer, time.monotonic()))

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(0.7)
    service.process.terminate()
    told_at = time.monotonic()
    asking.join()
    ((answer, at),) = answers
    assert at > told_at + 0.2, "it was answered before the signal came"
    assert answer.status_code == 200
    assert sum(len(one["answer"]["hits"]) > 0 for one in answer.json()["answers"]) == 150
    assert service.process.wait(30) == 0
    (asked,) = [line for line in service.lines() if line.get("route") == "/v1/search/batch"]
    assert asked["status"] == 200


def test_a_request_that_takes_too_long_is_broken_off(serve: Serve, query_path: Path) -> None:
    service = serve(SAYAGAIN_SHUTDOWN_S="1")
    with socket.create_connection(("127.0.0.1", int(service.url.rpartition(":")[2]))) as never:
        never.sendall(b"POST /v1/search HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=x\r\n")
        never.sendall(b"Content-Length: 1000\r\n\r\n--x\r\n")
        time.sleep(0.5)
        began = time.monotonic()
        assert service.end() == 0
        assert 0.9 < time.monotonic() - began < 15


def tells_of_all(service: Service, living: set[int]) -> bool:
    """Whether metrics, whoever tells them, count what all have answered, the dead too, and show those that live."""
    found = Found(service.get("/metrics").text)
    answered = sum(line.get("route") == "/healthz" for line in service.lines())
    return (
        found("sayagain_requests_total", route="/healthz", method="GET", status="200") == answered
        and found("sayagain_request_seconds_count", route="/healthz") == answered
        and found.labels("process_resident_memory_bytes", "pid") == {str(pid) for pid in living}
    )


def test_several_workers_answer_are_replaced_where_they_die_and_go_at_the_end(serve: Serve) -> None:
    service = serve("--workers", "2", "--host", "0.0.0.0", SAYAGAIN_METRICS_OPEN="true")
    pids = service.all_answer(2)
    assert pids <= {one.pid for one in children(service)}
    # The option has reached them: they know that they are not on loopback.
    answer = service.get("/v1/archives")
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "key_missing")
    os.kill(min(pids), signal.SIGKILL)
    until(lambda: not psutil.pid_exists(min(pids)))
    living = service.all_answer(2, but=min(pids))
    assert len(living) == 2
    until(lambda: tells_of_all(service, living))
    family = children(service)
    assert service.end() == 0
    assert psutil.wait_procs(family, 10)[1] == []


def test_workers_end_where_the_one_that_started_them_is_killed(serve: Serve) -> None:
    service = serve("--workers", "2")
    service.all_answer(2)
    family = children(service)
    service.end(signal.SIGKILL)
    assert psutil.wait_procs(family, 30)[1] == []


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("wrong", ["port", "tokenizer", "database"])
def test_what_cannot_start_ends_with_exit_code_1(
    demo_home: Path, tokenizer_path: Path, tmp_path: Path, workers: str, wrong: str
) -> None:
    from tests.service.conftest import run_cli

    environment = {}
    if wrong == "tokenizer":
        (tmp_path / "t.onnx").write_text("no")
        environment["SAYAGAIN_TOKENIZER"] = str(tmp_path / "t.onnx")
    if wrong == "database":
        environment["SAYAGAIN_DATABASE_URL"] = "postgresql://nobody:secret@127.0.0.1:1/none"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1] if wrong == "port" else free_port())
        done = run_cli(
            demo_home, tokenizer_path, "serve", "--port", port, "--workers", workers, SAYAGAIN_RUN_JOBS="false",
            **environment,
        )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    says = {
        "port": "address already in use",
        "tokenizer": "sayagain: tokenizer_invalid: ",
        "database": "sayagain: database_unavailable: ",
    }
    assert says[wrong] in done.stderr.lower()
    assert "secret" not in done.stderr


def stand_in() -> None:
    """In the place of `work`: says who it is, and stays."""
    with Path(os.environ["STAND_IN"]).open("a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(60)


def deaf_stand_in() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    stand_in()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], list[int]]:
    """The pids of all stand-ins so far."""
    monkeypatch.setenv("SAYAGAIN_RUN_JOBS", "true")
    monkeypatch.setenv("STAND_IN", str(tmp_path / "pids"))
    (tmp_path / "pids").touch()
    return lambda: [int(line) for line in (tmp_path / "pids").read_text().splitlines()]


def test_the_runner_is_started_again_and_ends_with_the_service(
    started: Callable[[], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "RESTART_S", 0.1)
    with serving._with_runner(stand_in, 5.0):
        assert os.environ["SAYAGAIN_RUN_JOBS"] == "false"
        (first,) = until(started)
        os.kill(first, signal.SIGKILL)
        until(lambda: len(started()) == 2)
        second = psutil.Process(started()[1])
        assert second.ppid() == os.getpid()
    assert not second.is_running()
    assert len(started()) == 2


def test_a_runner_that_does_not_listen_is_killed(started: Callable[[], list[int]]) -> None:
    with serving._with_runner(deaf_stand_in, 0.5):
        (pid,) = until(started)
        began = time.monotonic()
    assert 0.4 < time.monotonic() - began < 10
    assert not psutil.pid_exists(pid)
