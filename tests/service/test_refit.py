"""An archive that grows gets a codebook that is fitted to all of it, and nothing else about it changes."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, text

from indexer import fitting, pipeline, store
from indexer.recordings import delete_recording
from service.app import create_app
from service.deps import Backend
from service.jobs import queue
from service.retokenizing import NothingKept, RetokenizeFailed, back, recordings_of, refit
from service.settings import Settings
from tests.conftest import ToneFile, database_url
from tests.service.conftest import DEMO, run_cli
from tests.service.test_jobs import ended, listed, send
from tests.service.test_watches import seen, until

STATION = DEMO / "archive" / "skerry-radio"
NAMES = sorted(path.name for path in STATION.iterdir())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def own(home: Path, tokenizer_path: Path) -> Iterator[TestClient]:
    settings = Settings(home=home, database_url=None, tokenizer=tokenizer_path, threads=1, _env_file=None)
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


def put(own: TestClient, *names: str, **form: Any) -> dict[str, Any]:
    return ended(own, send(own, "air", *((name, (STATION / name).read_bytes()) for name in names), **form).json())


def test_an_archive_that_grows_is_fitted_anew(own: TestClient, home: Path, query_path: Path) -> None:
    clip = query_path.read_bytes()
    assert put(own, *NAMES[:3], about=json.dumps([{"metadata": {"a": 1}, "external_id": "own"}]))["state"] == "done"
    assert own.get("/v1/archives/air").json()["codebook"] == "tokenizer"  # there is too little to fit one to
    form = {"archive": "air", "name": "w", "min_score": 0.0}
    watch = own.post("/v1/watches", files={"file": clip}, data=form).json()["id"]
    before = listed(own, "air")

    answers: list[Any] = []
    shown: set[str] = set()
    over = threading.Event()

    def search() -> None:
        while not over.is_set():
            shown.update(one["name"] for one in own.get("/v1/archives").json()["archives"])
            answers.append(own.post("/v1/search", files={"file": clip}, data={"archive": "air"}))

    searching = threading.Thread(target=search)
    searching.start()
    try:
        job = put(own, *NAMES[3:])
        (made,) = own.get("/v1/jobs", params={"archive": "air", "limit": 1}).json()["jobs"]
        assert (made["kind"], made["id"]) == ("refit", job["id"] + 1)
        until(lambda: seen(own, watch))
        hits = own.get(f"/v1/watches/{watch}/hits").json()["hits"]
        made = ended(own, made)
    finally:
        over.set()
        searching.join()
    assert (made["state"], made["report"]["indexed"]) == ("done", len(NAMES))
    assert shown == {"air"}  # what is being made is nobody's business
    archive = own.get("/v1/archives/air").json()
    assert (archive["codebook"], archive["recordings"]) == ("archive", len(NAMES))
    assert [one["name"] for one in own.get("/v1/archives").json()["archives"]] == ["air"]
    # Searches went on, and found something each time.
    assert len(answers) > 3
    assert all(answer.status_code == 200 and answer.json()["hits"] for answer in answers)
    # All that is known of recordings is what it was, and they are not new to a watch.
    after = listed(own, "air")
    assert {name: after[name] for name in before} == before
    until(lambda: seen(own, watch))
    assert own.get(f"/v1/watches/{watch}/hits").json()["hits"] == hits
    # And it finds with confidence what is there: service/demo/truth.tsv.
    found = own.post("/v1/search", files={"file": clip}, data={"archive": "air", "limit": 4}).json()["hits"]
    best = {hit["recording"]["name"] for hit in found[:3]}
    assert best == {"01-monday.opus", "04-thursday.opus", "10-late-night.opus"}
    assert found[2]["score"] > 1.5 * found[3]["score"]
    # What it was before is kept, nothing else is left beside it, and files that were sent in are there still.
    backend: Backend = own.app.state.backend  # type: ignore[attr-defined]
    with backend.connect() as connection:
        beside = {one.name: one for one in store.list_archives(connection)}
        codebooks = connection.exec_driver_sql("SELECT id FROM codebook").scalars().all()
    assert sorted(beside) == ["air", "air~before"]
    assert sorted(codebooks) == sorted([beside["air"].codebook_id, beside["air~before"].codebook_id])
    assert all(own.get(f"/v1/recordings/{one['id']}/audio").status_code == 200 for one in after.values())


def test_the_same_fit_again_changes_nothing(
    own: TestClient, home: Path, tokenizer_path: Path, query_path: Path
) -> None:
    def asked() -> list[dict[str, Any]]:
        form = {"archive": "air", "exact": "true", "limit": 1_000}
        return list(own.post("/v1/search", files={"file": query_path.read_bytes()}, data=form).json()["hits"])

    before = asked()
    done = run_cli(home, tokenizer_path, "refit", "air", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["indexed"] == len(NAMES)
    assert asked() == before
    gone = run_cli(home, tokenizer_path, "refit", "nothing")
    assert (gone.returncode, "archive_not_found" in gone.stderr) == (1, True)


def test_an_archive_goes_back_to_what_it_was_before(engine: Engine, tone_file: ToneFile, tokenizer_path: Path) -> None:
    def tokens(name: str) -> dict[str, list[bytes]]:
        with engine.connect() as connection:
            rows = connection.execute(
                text("""
                    SELECT recording.name, tokens FROM segment JOIN recording ON recording.id = recording_id
                    JOIN archive ON archive.id = recording.archive_id AND archive.codebook_id = recording.codebook_id
                    WHERE archive.name = :name ORDER BY recording.name, position
                """),
                {"name": name},
            ).all()
        return {name: [row.tokens for row in rows if row.name == name] for name in {row.name for row in rows}}

    def ids() -> dict[str, int]:
        with engine.connect() as connection:
            archive = store.get_archive(connection, "a")
            assert archive.segments == sum(len(strings) for strings in tokens("a").values())
            return {one.name: one.id for one in recordings_of(connection, archive)}

    for number in range(4):
        folder = tone_file(f"{number}.wav", seconds=40, seed=number).parent
    pipeline.index_archive(engine, [folder / "0.wav"], "a", tokenizer_path, workers=1, codebook="tokenizer")
    with pytest.raises(NothingKept):
        back(engine, "a", lambda _: tokenizer_path, workers=1)
    pipeline.index_archive(engine, [folder], "a", tokenizer_path, workers=1)
    first = tokens("a")
    assert refit(engine, "a", tokenizer_path, workers=1).codebook_kind == "archive"
    second, known = tokens("a"), ids()
    assert all(first[name] != second[name] for name in first)
    # One is gone, one has changed, one is new, and the file of another is not there.
    with engine.begin() as connection:
        delete_recording(connection, store.get_archive(connection, "a").id, "0.wav")
    assert "0.wav" not in tokens("a~before")
    tone_file("1.wav", seconds=30, seed=9)
    tone_file("4.wav", seconds=20, seed=4)
    (folder / "0.wav").unlink()
    pipeline.index_archive(engine, [folder], "a", tokenizer_path, workers=1)
    (folder / "2.wav").rename(folder / "2.away")
    report = back(engine, "a", lambda _: tokenizer_path, workers=1)
    assert (report.indexed, report.unchanged, report.codebook_kind) == (2, 1, "tokenizer")
    now = tokens("a")
    assert {name: strings for name, strings in now.items() if name in ("2.wav", "3.wav")} == {
        name: strings for name, strings in first.items() if name in ("2.wav", "3.wav")
    }
    assert sorted(now) == ["1.wav", "2.wav", "3.wav", "4.wav"]
    assert now["1.wav"] != first["1.wav"]
    assert {name: ids()[name] for name in ("1.wav", "2.wav", "3.wav")} == {
        name: known[name] for name in ("1.wav", "2.wav", "3.wav")
    }
    # And forth: but not without the sound of one that came meanwhile and that what is kept does not have.
    with engine.begin() as connection:
        kept = store.get_archive(connection, "a~before")
        delete_recording(connection, kept.id, "4.wav")
    (folder / "4.wav").rename(folder / "4.away")
    with pytest.raises(RetokenizeFailed, match=r"2 of 4|1 of 4"):
        back(engine, "a", lambda _: tokenizer_path, workers=1)
    assert tokens("a") == now
    (folder / "4.away").rename(folder / "4.wav")
    assert back(engine, "a", lambda _: tokenizer_path, workers=1).codebook_kind == "archive"
    assert tokens("a")["3.wav"] == second["3.wav"]


def test_an_archive_that_lacks_files_keeps_its_codebook(
    engine: Engine, tone_file: ToneFile, tokenizer_path: Path
) -> None:
    paths = [tone_file(f"{i}.wav", seconds=80, seed=i) for i in range(2)]
    report = pipeline.index_archive(engine, [paths[0].parent], "a", tokenizer_path, workers=1, codes=False)
    assert (report.codebook_kind, report.outgrown) == ("archive", False)
    paths[0].unlink()
    with pytest.raises(RetokenizeFailed, match=r"1 of 2 files are missing, the first is '0.wav'"):
        refit(engine, "a", tokenizer_path, workers=1)
    with engine.connect() as connection, engine.connect() as other:
        archive = store.get_archive(connection, "a")
        assert (archive.recordings, archive.codebook_kind) == (2, "archive")
        # And while somebody indexes into it nobody makes it anew.
        store.lock_archive(connection, archive, for_transaction=True)
        with pytest.raises(store.ArchiveBusy):
            refit(engine, "a", tokenizer_path, workers=1)
        assert store.list_archives(other)[0].name == "a"


@pytest.mark.parametrize(
    ("kind", "size", "parameters", "hours", "expected"),
    [
        (None, 0, {}, 100.0, False),
        ("tokenizer", 1_024, {"asked_for": True}, 100.0, False),
        ("tokenizer", 1_024, {"archive_s": 100.0}, 0.03, False),
        ("tokenizer", 1_024, {"archive_s": 100.0}, 0.04, True),
        ("archive", 512, {"archive_s": 360.0}, 0.39, False),
        ("archive", 512, {"archive_s": 360.0}, 0.41, True),
        ("archive", 8_192, {"archive_s": 3_600.0}, 100.0, False),  # no codebook is larger
    ],
)
def test_when_an_archive_has_outgrown_its_codebook(
    kind: fitting.Kind | None, size: int, parameters: dict[str, Any], hours: float, expected: bool
) -> None:
    assert fitting.outgrown(kind, size, parameters, hours * 3_600.0, 0.04) is expected


def test_a_refit_that_is_not_wanted_is_not_asked_for(tmp_path: Path, tokenizer_path: Path) -> None:
    settings = Settings(
        home=tmp_path, database_url=None, tokenizer=tokenizer_path, threads=1, refit_hours=0.01, _env_file=None
    )
    with TestClient(create_app(settings)) as client:
        put(client, *NAMES[:3])
        put(client, *NAMES[3:])
        jobs = client.get("/v1/jobs").json()["jobs"]
        assert [job["kind"] for job in jobs] == ["index_upload", "index_upload"]
        assert client.get("/v1/archives/air").json()["codebook"] == "tokenizer"
    done = run_cli(tmp_path, tokenizer_path, "index", STATION, "--archive", "air", "--json")
    assert json.loads(done.stdout)["codebook"]["outgrown"] is True


def test_a_refit_that_is_given_up_leaves_nothing(
    engine: Engine, tone_file: ToneFile, tokenizer_path: Path, tmp_path: Path
) -> None:
    for number in range(6):
        folder = tone_file(f"{number}.wav", seconds=60, seed=number).parent
    pipeline.index_archive(engine, [folder], "a", tokenizer_path, workers=1, codes=False)
    settings = Settings(
        home=tmp_path / "home", database_url=database_url(engine, str(engine.url.database)), tokenizer=tokenizer_path,
        threads=1, index_workers=1, _env_file=None,
    )  # fmt: skip
    with engine.begin() as connection:
        archive = store.get_archive(connection, "a")
        for _ in range(2):
            queue.add_once(connection, archive.id, "refit")
    with TestClient(create_app(settings)) as client:
        (job,) = client.get("/v1/jobs").json()["jobs"]
        while client.get(f"/v1/jobs/{job['id']}").json()["progress"] is None:
            time.sleep(0.02)
        client.post(f"/v1/jobs/{job['id']}/cancel")
        assert ended(client, job)["state"] == "cancelled"
    with engine.connect() as connection:
        assert [one.name for one in store.list_archives(connection)] == ["a"]
        assert store.get_archive(connection, "a").codebook_id == archive.codebook_id
