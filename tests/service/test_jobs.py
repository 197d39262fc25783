"""Jobs: recordings sent in, folders of the server, progress, cancelling, and processes that die."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, text

from indexer import database, store
from service.app import create_app
from service.deps import Backend
from service.jobs import queue, uploads
from service.settings import Settings
from tests.conftest import ToneFile, database_url
from tests.service.conftest import DEMO
from tests.service.test_api import ask

STATION = DEMO / "archive" / "skerry-radio"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that may be indexed."""
    return Path(shutil.copytree(STATION, tmp_path_factory.mktemp("root") / "radio")).parent


@pytest.fixture(scope="module")
def own(home: Path, root: Path, tokenizer_path: Path) -> Iterator[TestClient]:
    """A service with nothing in it, which does jobs."""
    settings = Settings(home=home, database_url=None, tokenizer=tokenizer_path, threads=1, roots=[root], _env_file=None)
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


def ended(client: TestClient, job: dict[str, Any], wait_s: float = 120.0) -> dict[str, Any]:
    """A job when nothing more will be done for it."""
    deadline = time.monotonic() + wait_s
    while job["state"] in ("queued", "running"):
        assert time.monotonic() < deadline, job
        time.sleep(0.1)
        job = client.get(f"/v1/jobs/{job['id']}").json()
    return job


def send(client: TestClient, archive: str, *files: tuple[str, bytes], **form: Any) -> Any:
    return client.post("/v1/recordings", files=[("file", file) for file in files], data={"archive": archive, **form})


def kept(home: Path) -> list[Path]:
    return [path for path in (home / uploads.FOLDER).glob("*/*") if path.is_file()]


def listed(client: TestClient, archive: str, **query: Any) -> dict[str, dict[str, Any]]:
    page = client.get("/v1/recordings", params={"archive": archive, **query}).json()
    return {recording["name"]: recording for recording in page["recordings"]}


def test_recordings_that_are_sent_in_are_found(own: TestClient, home: Path, query_path: Path) -> None:
    names = ["01-monday.opus", "02-tuesday.opus"]
    about = [{"metadata": {"day": 1, "who": ["anna"]}, "external_id": "mon"}, {"name": "week/tuesday.opus"}]
    answer = send(own, "sent", *((name, (STATION / name).read_bytes()) for name in names), about=json.dumps(about))
    assert answer.status_code == 202
    job = answer.json()
    assert (job["kind"], job["archive"], job["state"]) == ("index_upload", "sent", "queued")
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    job = ended(own, job)
    assert (job["state"], job["report"]["indexed"], job["report"]["failed"], job["error"]) == ("done", 2, [], None)
    recordings = listed(own, "sent")
    assert set(recordings) == {"01-monday.opus", "week/tuesday.opus"}
    assert recordings["01-monday.opus"]["metadata"] == {"day": 1, "who": ["anna"]}
    assert [recordings[name]["external_id"] for name in sorted(recordings)] == ["mon", None]
    hits = ask(own, query_path.read_bytes(), archive="sent").json()["hits"]
    assert hits[0]["recording"]["name"] in recordings
    sound = own.get(f"/v1/recordings/{recordings['week/tuesday.opus']['id']}/audio")
    assert sound.content == (STATION / names[1]).read_bytes()
    assert len(kept(home)) == 2
    # What was sent in goes with its recording, and the rest with the archive.
    assert own.delete("/v1/recordings", params={"archive": "sent", "external_id": "mon"}).status_code == 204
    assert len(kept(home)) == 1
    assert own.delete("/v1/archives/sent").status_code == 204
    assert kept(home) == []


def test_a_recording_takes_anothers_place_only_when_told_to(own: TestClient, home: Path) -> None:
    first, second = ((STATION / name).read_bytes() for name in ("01-monday.opus", "02-tuesday.opus"))
    about = '[{"external_id": "x", "metadata": {"n": 1}}]'
    assert ended(own, send(own, "place", ("a.opus", first), about=about).json())["state"] == "done"
    before = listed(own, "place")["a.opus"]
    again = send(own, "place", ("a.opus", second))
    assert (again.status_code, again.json()["error"]["code"]) == (409, "recording_name_taken")
    twins = send(own, "place", ("b.opus", first), ("b.opus", second))
    assert (twins.status_code, twins.json()["error"]["code"]) == (409, "recording_name_taken")
    taken = send(own, "place", ("b.opus", first), about='[{"external_id": "x"}]')
    assert (taken.status_code, taken.json()["error"]["code"]) == (409, "external_id_taken")
    assert ended(own, send(own, "place", ("a.opus", second), replace="true").json())["state"] == "done"
    after = listed(own, "place")["a.opus"]
    assert (after["id"], after["external_id"]) == (before["id"], "x")
    assert after["sha256"] != before["sha256"]
    assert [path.read_bytes() for path in kept(home)] == [second]
    # What is not said of it stays as it is.
    for about, expected in (
        ("{}", ("x", {"n": 1})),
        ('{"external_id": "y"}', ("y", {"n": 1})),
        ('{"metadata": {}}', ("y", {})),
    ):
        sent = send(own, "place", ("a.opus", first), replace="true", about=f"[{about}]")
        assert ended(own, sent.json())["state"] == "done"
        now = listed(own, "place")["a.opus"]
        assert (now["external_id"], now["metadata"]) == expected
    own.delete("/v1/archives/place")


def test_what_is_no_sound_fails_and_is_not_kept(own: TestClient, home: Path) -> None:
    good = (STATION / "01-monday.opus").read_bytes()
    job = ended(own, send(own, "mixed", ("good.opus", good), ("bad.wav", b"RIFF no sound at all")).json())
    assert (job["state"], job["report"]["indexed"]) == ("done", 1)
    assert [(f["name"], f["code"]) for f in job["report"]["failed"]] == [("bad.wav", "audio_undecodable")]
    job = ended(own, send(own, "mixed", ("bad.wav", b"")).json())
    assert (job["state"], job["error"]["code"]) == ("failed", "audio_empty")
    assert [path.read_bytes() for path in kept(home)] == [good]
    own.delete("/v1/archives/mixed")


@pytest.mark.parametrize("name", ["../a.wav", "/etc/a.wav", "a//b.wav", "a/../b.wav", "a\nb.wav", "x" * 2_001, "."])
def test_names_that_lead_out_are_refused(own: TestClient, home: Path, name: str) -> None:
    answer = send(own, "names", ("a.wav", b"x"), about=json.dumps([{"name": name}]))
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_request")
    assert kept(home) == []


@pytest.mark.parametrize(
    "about",
    ["{}", "[1]", '[{"more": 1}]', "[{}, {}]", '[{"metadata": {"a": NaN}}]', '[{"external_id": ""}]', "nonsense"],
)
def test_descriptions_that_are_none(own: TestClient, about: str) -> None:
    answer = send(own, "names", ("a.wav", b"x"), about=about)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["field"]) == (422, "invalid_request", "about")
    large = json.dumps([{"metadata": {"a": "x" * 16_384}}])
    assert send(own, "names", ("a.wav", b"x"), about=large).status_code == 422


@pytest.fixture
def small_files() -> Iterator[None]:
    """This process may write no file of more than 600 kB, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [800_000, 3_000_000])  # what is kept is too large, or already what is received
def test_a_full_disk_is_told_of_and_nothing_is_left(own: TestClient, home: Path, small_files: None, size: int) -> None:
    answer = send(own, "full", ("a.wav", bytes(size)))
    assert (answer.status_code, answer.json()["error"]["code"]) == (507, "storage_full")
    assert kept(home) == []


def test_folders_below_the_roots_are_indexed_and_no_others(
    own: TestClient, root: Path, tmp_path: Path, query_path: Path
) -> None:
    job = ended(own, own.post("/v1/jobs", json={"archive": "folder", "folder": str(root / "radio")}).json())
    assert (job["state"], job["report"]["failed"]) == ("done", [])
    count = job["report"]["indexed"]
    assert count == len(list((root / "radio").iterdir()))
    assert ask(own, query_path.read_bytes(), archive="folder").json()["hits"]
    # By a relative path; nothing has changed since.
    job = ended(own, own.post("/v1/jobs", json={"archive": "folder", "folder": "radio"}).json())
    assert (job["report"]["indexed"], job["report"]["unchanged"]) == (0, count)
    outside = tmp_path / "outside"
    shutil.copytree(STATION, outside)
    (root / "link").symlink_to(outside)
    for folder in (outside, root / "link", root / ".." / "outside", "/", "nothing", "radio/../../..", "a\0b"):
        answer = own.post("/v1/jobs", json={"archive": "folder", "folder": str(folder)})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "folder_forbidden"), folder
    # A link inside leads out as little.
    (root / "more").mkdir()
    (root / "more" / "out").symlink_to(outside)
    (root / "more" / "one.opus").symlink_to(outside / "01-monday.opus")
    shutil.copy(STATION / "03-wednesday.opus", root / "more" / "own.opus")
    job = ended(own, own.post("/v1/jobs", json={"archive": "links", "folder": "more"}).json())
    assert set(listed(own, "links")) == {"own.opus"}
    assert {(f["name"], f["code"]) for f in job["report"]["failed"]} == {
        ("out", "outside_roots"), ("one.opus", "outside_roots"),
    }  # fmt: skip


def test_without_roots_no_folder_may_be_indexed(client: TestClient) -> None:
    answer = client.post("/v1/jobs", json={"archive": "demo", "folder": str(DEMO)})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "folder_forbidden")


def test_jobs_are_listed_and_those_that_are_over_stay(own: TestClient) -> None:
    made = [ended(own, send(own, "list", (f"{i}.wav", b"")).json())["id"] for i in range(3)]
    page = own.get("/v1/jobs", params={"archive": "list", "limit": 2}).json()
    assert [job["id"] for job in page["jobs"]] == made[:0:-1]
    rest = own.get("/v1/jobs", params={"archive": "list", "before": page["next_before"]}).json()
    assert ([job["id"] for job in rest["jobs"]], rest["next_before"]) == (made[:1], None)
    assert own.get("/v1/jobs", params={"archive": "list", "state": ["done", "queued"]}).json()["jobs"] == []
    assert len(own.get("/v1/jobs", params={"archive": "list", "state": "failed"}).json()["jobs"]) == 3
    again = own.post(f"/v1/jobs/{made[0]}/cancel")
    assert (again.status_code, again.json()["error"]["code"]) == (409, "job_finished")
    for method, path in (("get", "/v1/jobs/99999"), ("post", "/v1/jobs/99999/cancel")):
        answer = getattr(own, method)(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "job_not_found")


@pytest.fixture
def elsewhere(engine: Engine, tmp_path: Path, tokenizer_path: Path) -> Settings:
    """Settings of a service that does no jobs itself, with a database of its own."""
    url = database_url(engine, str(engine.url.database))
    return Settings(
        home=tmp_path / "home", database_url=url, tokenizer=tokenizer_path, threads=1, run_jobs=False,
        roots=[tmp_path], index_workers=1, _env_file=None,
    )  # fmt: skip


def work(settings: Settings) -> subprocess.Popen[bytes]:
    """`sayagain work` for these settings."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("SAYAGAIN_")}
    clean |= {
        "SAYAGAIN_HOME": str(settings.home), "SAYAGAIN_TOKENIZER": str(settings.tokenizer),
        "SAYAGAIN_DATABASE_URL": str(settings.url), "SAYAGAIN_ROOTS": json.dumps([str(p) for p in settings.roots]),
        "SAYAGAIN_INDEX_WORKERS": "1",
    }  # fmt: skip
    return subprocess.Popen([sys.executable, "-m", "service", "work"], env=clean, stderr=subprocess.DEVNULL)


def test_a_job_survives_the_processes_that_do_it(
    elsewhere: Settings, tone_file: ToneFile, engine: Engine, tmp_path: Path
) -> None:
    for number in range(6):
        tone_file(f"{number}.wav", seconds=60, seed=number)
    with TestClient(create_app(elsewhere)) as client:
        job = client.post("/v1/jobs", json={"archive": "long", "folder": str(tmp_path / "audio")}).json()
        rows = []
        for deaths in (1, 2):
            worker = work(elsewhere)
            while client.get(f"/v1/jobs/{job['id']}").json()["state"] != "running" or not counted(engine) > len(rows):
                assert worker.poll() is None
                time.sleep(0.02)
            worker.send_signal(signal.SIGKILL if deaths == 1 else signal.SIGTERM)
            assert worker.wait(30) == (-signal.SIGKILL if deaths == 1 else 0)
            rows = hashes(engine)
            assert len(rows) > 0
        state = client.get(f"/v1/jobs/{job['id']}").json()["state"]
        assert state in ("queued", "done")  # it was stopped, and put the job off
        worker = work(elsewhere)
        job = ended(client, job)
        worker.terminate()
        assert worker.wait(30) == 0
        assert job["state"] == "done"
        final = hashes(engine)
        assert len(final) == 6
        assert set(rows) <= set(final)  # what was stored is as it was
        assert len(listed(client, "long")) == 6


def counted(engine: Engine) -> int:
    with database.connect(engine) as connection:
        return int(connection.execute(text("SELECT count(*) FROM recording")).scalar_one())


def hashes(engine: Engine) -> list[tuple[Any, ...]]:
    with database.connect(engine) as connection:
        rows = connection.execute(
            text("SELECT name, (SELECT md5(string_agg(tokens, '' ORDER BY position)) FROM segment "
                 "WHERE recording_id = recording.id), indexed_at FROM recording ORDER BY name")
        )  # fmt: skip
        return [tuple(row) for row in rows]


def test_a_running_job_is_given_up(elsewhere: Settings, tone_file: ToneFile, engine: Engine, tmp_path: Path) -> None:
    for number in range(8):
        tone_file(f"{number}.wav", seconds=60, seed=number)
    with TestClient(create_app(elsewhere)) as client:
        waits = client.post("/v1/jobs", json={"archive": "b", "folder": str(tmp_path / "audio")}).json()
        runs = client.post("/v1/jobs", json={"archive": "a", "folder": str(tmp_path / "audio")}).json()
        assert client.post(f"/v1/jobs/{waits['id']}/cancel").json()["state"] == "cancelled"
        worker = work(elsewhere)
        try:
            while (shown := client.get(f"/v1/jobs/{runs['id']}").json())["progress"] is None:
                time.sleep(0.02)
            assert shown["state"] == "running"
            assert 0 <= shown["progress"]["done_s"] <= shown["progress"]["total_s"]
            assert client.post(f"/v1/jobs/{runs['id']}/cancel").json()["cancel_wanted"]
            assert ended(client, runs)["state"] == "cancelled"
            assert counted(engine) < 8
            assert client.get(f"/v1/jobs/{waits['id']}").json()["started_at"] is None
        finally:
            worker.terminate()
            worker.wait(30)


def test_a_job_that_kills_whoever_does_it_is_given_up(engine: Engine) -> None:
    with database.connect(engine) as connection:
        archive = _archive(connection)
        number = queue.add(connection, archive, "index_folder", {"folder": "/"})
        connection.commit()
    for _ in range(queue.ATTEMPTS):
        with database.connect(engine) as connection, database.connect(engine) as other:
            taken = queue.take(connection)
            assert taken is not None
            assert (taken.id, taken.state) == (number, "running")
            assert queue.take(other) is None  # it is held
            connection.invalidate()  # its process dies
            other.invalidate()
    with database.connect(engine) as connection:
        assert queue.take(connection) is None
        job = queue.get(connection, number)
        assert (job.state, job.error) == (
            "failed",
            {"code": "job_died", "message": "whoever was doing it has died 3 times"},
        )


def test_each_job_is_taken_once(engine: Engine) -> None:
    with database.connect(engine) as connection:
        archive = _archive(connection)
        made = [queue.add(connection, archive, "index_folder", {"folder": "/"}) for _ in range(5)]
        connection.commit()
    connections = [engine.connect() for _ in range(6)]
    taken = [queue.take(connection) for connection in connections]
    assert [job.id for job in taken if job is not None] == made
    assert taken[-1] is None
    for connection in connections:
        connection.invalidate()
        connection.close()


def _archive(connection: Any) -> int:
    connection.execute(text("""
        WITH made AS (INSERT INTO tokenizer (sha256, name, version, frame_seconds, dim)
            VALUES ('x', 'x', '1', 0.04, 4) RETURNING id)
        INSERT INTO archive (name, tokenizer_id) SELECT 'a', id FROM made
    """))  # fmt: skip
    return store.get_archive(connection, "a").id


def test_files_that_nothing_refers_to_are_swept_away(own: TestClient, home: Path) -> None:
    good = (STATION / "01-monday.opus").read_bytes()
    assert ended(own, send(own, "swept", ("good.opus", good)).json())["state"] == "done"
    stray = home / uploads.FOLDER / "ab" / "stray.opus"
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(b"x")
    for path in kept(home):
        os.utime(path, (1, 1))
    backend: Backend = own.app.state.backend  # type: ignore[attr-defined]
    with backend.connect() as connection:
        assert uploads.sweep(home, connection) == 1
        assert uploads.sweep(home, connection) == 0
    assert [path.read_bytes() for path in kept(home)] == [good]
    own.delete("/v1/archives/swept")


def test_metadata_filter_what_is_listed_and_searched(own: TestClient, query_path: Path) -> None:
    names = sorted(path.name for path in STATION.iterdir())[:4]
    about = [{"metadata": {"n": i, "odd": bool(i % 2), "deep": {"a": [i, "x\0"]}}} for i in range(4)]
    files = [(name, (STATION / name).read_bytes()) for name in names]
    assert ended(own, send(own, "meta", *files, about=json.dumps(about)).json())["state"] == "done"

    def found(where: object) -> set[str]:
        answer = ask(own, query_path.read_bytes(), archive="meta", limit=1_000, where=json.dumps(where)).json()
        assert answer["searched"]["recordings"] == len(listed(own, "meta", where=json.dumps(where)))
        return {hit["recording"]["name"] for hit in answer["hits"]}

    everything = found({})
    assert len(everything) > 2
    assert set(listed(own, "meta", where='{"odd": true}')) == set(names[1::2])
    assert found({"odd": True}) == everything & set(names[1::2])
    assert set(listed(own, "meta", where='{"deep": {"a": [2]}}')) == {names[2]}
    assert found({"n": 99}) == set()
    number = listed(own, "meta")[names[0]]["id"]
    changed = own.patch(f"/v1/recordings/{number}", json={"metadata": {"odd": True}, "external_id": "zero"}).json()
    assert (changed["metadata"], changed["external_id"]) == ({"odd": True}, "zero")
    assert found({"odd": True}) == everything & {names[0], *names[1::2]}
    assert own.patch(f"/v1/recordings/{number}", json={"external_id": None}).json()["external_id"] is None
    other = listed(own, "meta")[names[1]]["id"]
    own.patch(f"/v1/recordings/{number}", json={"external_id": "zero"})
    taken = own.patch(f"/v1/recordings/{other}", json={"external_id": "zero"})
    assert (taken.status_code, taken.json()["error"]["code"]) == (409, "external_id_taken")
    for where in ("[]", "nonsense", '{"a": NaN}'):
        error = ask(own, query_path.read_bytes(), archive="meta", where=where).json()["error"]
        assert (error["code"], error["field"]) == ("invalid_request", "where")
    own.delete("/v1/archives/meta")


def test_search_by_metadata_equals_a_search_that_is_filtered_afterwards(own: TestClient, query_path: Path) -> None:
    files = [(path.name, path.read_bytes()) for path in sorted(STATION.iterdir())]
    about = [{"metadata": {"odd": bool(i % 2)}} for i in range(len(files))]
    assert ended(own, send(own, "same", *files, about=json.dumps(about)).json())["state"] == "done"
    ask_all = {"archive": "same", "limit": 1_000, "exact": "true"}
    whole = ask(own, query_path.read_bytes(), **ask_all).json()["hits"]
    odd = {name for name, one in listed(own, "same").items() if one["metadata"]["odd"]}
    part = ask(own, query_path.read_bytes(), where='{"odd": true}', **ask_all).json()["hits"]
    expected = [hit for hit in whole if hit["recording"]["name"] in odd]
    assert [(h["recording"]["name"], h["start"]) for h in part] == [
        (h["recording"]["name"], h["start"]) for h in expected
    ]
    # Also the scores: what else there is speaks for a hit or against it, whatever is asked for.
    np.testing.assert_allclose([hit["score"] for hit in part], [hit["score"] for hit in expected], atol=1e-6)
    fast = ask(own, query_path.read_bytes(), where='{"odd": true}', archive="same", limit=3).json()["hits"]
    assert [(h["recording"]["name"], h["start"]) for h in fast][:2] == [
        (h["recording"]["name"], h["start"]) for h in expected
    ][:2]
    own.delete("/v1/archives/same")
