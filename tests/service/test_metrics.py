"""What /metrics tells, read by Prometheus's own parser."""

import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine, text

from indexer import database
from service import keys
from service.app import create_app
from service.keys import Scope
from service.metrics import FOLDER_VARIABLE, Metrics
from service.requestlog import Handled
from service.search.answer import STAGES
from service.settings import Settings
from service.surroundings import MOST_ARCHIVES
from tests.conftest import database_url
from tests.service.test_api import ask

Sample = tuple[str, frozenset[tuple[str, str]]]


def samples(exposed: str) -> dict[Sample, float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(exposed)
        for sample in family.samples
    }


class Found:
    """Samples by name and labels."""

    def __init__(self, exposed: str) -> None:
        self.all = samples(exposed)

    def __call__(self, name: str, **labels: str) -> float:
        return self.all.get((name, frozenset(labels.items())), 0.0)

    def names(self) -> set[str]:
        return {name for name, _ in self.all}

    def labels(self, name: str, label: str) -> set[str]:
        return {dict(labels)[label] for other, labels in self.all if other == name}


def scrape(client: TestClient, **headers: str) -> Found:
    answer = client.get("/metrics", headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return Found(answer.text)


@pytest.fixture
def own(engine: Engine, tokenizer_path: Path, tmp_path: Path) -> Settings:
    """A database of its own, with nothing in it."""
    url = database_url(engine, str(engine.url.database))
    return Settings(
        home=tmp_path, database_url=url, tokenizer=tokenizer_path, threads=1, run_jobs=False, _env_file=None
    )


@pytest.fixture
def client(own: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(own), raise_server_exceptions=False) as client:
        yield client


def test_requests_are_counted_by_route_method_and_status(client: TestClient) -> None:
    for number in range(3):
        client.get(f"/v1/recordings/{number}/audio")
    client.get("/nowhere/1")
    client.get("/nowhere/2")
    client.request("BREW", "/nowhere")
    found = scrape(client)
    route = "/v1/recordings/{recording}/audio"
    assert found("sayagain_requests_total", route=route, method="GET", status="404") == 3
    assert found("sayagain_requests_total", route="none", method="GET", status="404") == 2
    assert found("sayagain_requests_total", route="none", method="other", status="404") == 1
    assert found("sayagain_request_seconds_count", route=route) == 3
    assert 0 < found("sayagain_request_seconds_sum", route=route) < 30
    assert found("sayagain_request_seconds_bucket", route=route, le="+Inf") == 3
    assert scrape(client)("sayagain_requests_total", route="/metrics", method="GET", status="200") == 1


def test_an_application_counts_for_itself(client: TestClient, own: Settings) -> None:
    client.get("/healthz")
    with TestClient(create_app(own)) as other:
        assert scrape(other)("sayagain_requests_total", route="/healthz", method="GET", status="200") == 0
    assert scrape(client)("sayagain_requests_total", route="/healthz", method="GET", status="200") == 1


def test_stages_of_searches_are_measured_whatever_the_route(settings: Settings, query_path: Path) -> None:
    clip = query_path.read_bytes()
    with TestClient(create_app(settings.model_copy(update={"run_jobs": False}))) as client:
        answer = ask(client, clip).json()
        once = scrape(client)
        assert once("sayagain_search_seconds_count") == 1
        assert once("sayagain_search_seconds_sum") == pytest.approx(answer["timing_ms"]["total"] / 1e3)
        for stage in STAGES:
            ms = answer["timing_ms"][stage]
            assert once("sayagain_search_stage_seconds_count", stage=stage) == (ms > 0)
            assert once("sayagain_search_stage_seconds_sum", stage=stage) == pytest.approx(ms / 1e3)
        assert once("sayagain_search_stage_seconds_count", stage="tokenize") == 1
        files = [("file", ("a", clip)), ("file", ("b", b"no sound")), ("file", ("c", clip))]
        assert client.post("/v1/search/batch", files=files, data={"archive": "demo"}).status_code == 200
        assert scrape(client)("sayagain_search_seconds_count") == 3
        hit = answer["hits"][0]
        right = f'[{{"recording": {hit["recording"]["id"]}, "start": {hit["start"]}, "end": {hit["end"]}}}]'
        refined = client.post("/v1/search/refine", files={"file": clip}, data={"archive": "demo", "right": right})
        assert refined.status_code == 200
        assert scrape(client)("sayagain_search_seconds_count") == 4
        found = scrape(client)
        assert found("sayagain_archive_recordings", archive="demo") == answer["searched"]["recordings"]
        assert found("sayagain_archive_hours", archive="demo") == pytest.approx(answer["searched"]["hours"], abs=1e-3)
        assert found("sayagain_archives") >= 1


def add_archives(engine: Engine, count: int) -> None:
    with database.connect(engine) as connection, connection.begin():
        connection.execute(
            text(
                "INSERT INTO tokenizer (sha256, name, version, frame_seconds, dim) VALUES ('0', 'other', '1', 0.04, 8)"
            )
        )
        connection.execute(
            text("""
                INSERT INTO archive (name, tokenizer_id, recordings, audio_s)
                SELECT 'a ' || lpad(n::text, 4, '0') || ' "ü\\', tokenizer.id, n, n * 3600
                FROM generate_series(1, :count) AS n, tokenizer
            """),
            {"count": count},
        )


def test_archives_are_bounded(client: TestClient, engine: Engine) -> None:
    add_archives(engine, MOST_ARCHIVES + 5)
    found = scrape(client)
    named = found.labels("sayagain_archive_hours", "archive")
    assert len(named) == MOST_ARCHIVES
    assert 'a 0001 "ü\\' in named
    assert found("sayagain_archive_hours", archive='a 0007 "ü\\') == 7
    assert found("sayagain_archives") == MOST_ARCHIVES + 5


def test_jobs_are_told_by_state(client: TestClient, engine: Engine) -> None:
    add_archives(engine, 1)
    found = scrape(client)
    assert found.labels("sayagain_jobs", "state") == {"queued", "running", "done", "failed", "cancelled"}
    assert found("sayagain_oldest_job_seconds") == 0
    with database.connect(engine) as connection, connection.begin():
        connection.execute(
            text("""
                INSERT INTO job (archive_id, kind, state, parameters, created_at)
                SELECT archive.id, 'index_folder', state, '{}', now() - interval '90 s'
                FROM archive, unnest(ARRAY['queued', 'queued', 'failed']) AS state
            """)
        )
    found = scrape(client)
    assert [found("sayagain_jobs", state=s) for s in ("queued", "running", "failed")] == [2, 0, 1]
    assert found("sayagain_oldest_job_seconds") == pytest.approx(90, abs=30)


def test_the_process_and_its_tokenizer_are_told_of(client: TestClient, tokenizer_path: Path) -> None:
    found = scrape(client)
    pid = str(os.getpid())
    assert 10e6 < found("process_resident_memory_bytes", pid=pid) < 100e9
    assert found("process_start_time_seconds", pid=pid) == pytest.approx(time.time(), abs=86_400)
    assert found("process_cpu_seconds_total", pid=pid) > 0
    assert found("process_open_fds", pid=pid) > 3
    assert found("sayagain_database_up") == 1
    assert found("sayagain_data_free_bytes") > 0
    assert found.labels("sayagain_tokenizer_info", "name") == {"fast"}
    assert found.labels("sayagain_tokenizer_info", "sha256") != {""}
    assert found.names() >= {"sayagain_info"}


def test_a_key_is_needed_where_one_is_unless_metrics_are_open(
    client: TestClient, own: Settings, engine: Engine
) -> None:
    with database.connect(engine) as connection, connection.begin():
        key = keys.create(connection, "prometheus", Scope.READ)
    refused = client.get("/metrics")
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "key_missing")
    found = scrape(client, Authorization=f"Bearer {key}")
    assert found("sayagain_requests_total", route="/metrics", method="GET", status="401") == 1
    with TestClient(create_app(own.model_copy(update={"metrics_open": True, "host": "0.0.0.0"}))) as opened:
        assert scrape(opened)("sayagain_database_up") == 1
        assert opened.get("/v1/archives").status_code == 401


def test_of_a_database_that_is_down_it_tells_too(own: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    down = own.model_copy(
        update={"database_url": type(own.database_url)("postgresql://a@127.0.0.1:1/none"), "metrics_open": True}
    )
    monkeypatch.setattr(database, "check", lambda engine: None)  # at the start it was there
    with TestClient(create_app(down)) as client:
        monkeypatch.undo()
        found = scrape(client)
    assert found("sayagain_database_up") == 0
    assert ("sayagain_database_up", frozenset()) in found.all
    assert "sayagain_archives" not in found.names()


def test_every_metric_that_the_documentation_names_is_there(settings: Settings, query_path: Path) -> None:
    written = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\b(?:sayagain|process)_[a-z_]+\b", written))
    assert len(named) > 15
    with TestClient(create_app(settings.model_copy(update={"run_jobs": False}))) as client:
        ask(client, query_path.read_bytes())
        found = scrape(client).names()
    found |= {name.removesuffix("_bucket") for name in found}
    assert named <= found


def count(requests: int, ready: "multiprocessing.synchronize.Event") -> None:
    """A process that answers: it counts, says so, and stays until it is told to go."""
    metrics = Metrics()
    for _ in range(requests):
        metrics.request(Handled("GET", "/a", 200, 0.02))
    ready.set()
    time.sleep(60)


@pytest.fixture
def counting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[int], multiprocessing.process.BaseProcess]]:
    """Starts such processes, which share a folder with this one."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    spawn = multiprocessing.get_context("spawn")
    started = []

    def start(requests: int) -> multiprocessing.process.BaseProcess:
        ready = spawn.Event()
        process = spawn.Process(target=count, args=(requests, ready))
        process.start()
        started.append(process)
        assert ready.wait(60)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


def test_any_process_tells_of_all_also_of_those_that_have_died(
    tmp_path: Path, counting: Callable[[int], multiprocessing.process.BaseProcess]
) -> None:
    first, second = counting(3), counting(4)
    here = Metrics()  # counts nothing itself: this process has imported the library without the variable

    def told() -> Found:
        return Found(here.text([]).decode())

    def counted(found: Found) -> tuple[float, float, float]:
        return (
            found("sayagain_requests_total", route="/a", method="GET", status="200"),
            found("sayagain_request_seconds_bucket", route="/a", le="0.025"),
            found("sayagain_request_seconds_sum", route="/a"),
        )

    found = told()
    assert counted(found) == (7, 7, pytest.approx(0.14))
    pids = {str(pid) for pid in (first.pid, second.pid, os.getpid())}
    assert found.labels("process_resident_memory_bytes", "pid") == pids
    for process in (first, second):
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        found = told()
        assert counted(found) == (7, 7, pytest.approx(0.14))
        assert str(process.pid) not in found.labels("process_resident_memory_bytes", "pid")
        assert list(tmp_path.glob(f"*{process.pid}*")) == []
    counting(5)
    assert counted(told()) == (12, 12, pytest.approx(0.24))
