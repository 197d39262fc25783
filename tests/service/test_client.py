"""The client against a real service, and the README's recipes as they stand there."""

import asyncio
import csv
import io
import re
import shutil
import subprocess
import sys
import time
import wave
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.client import AsyncClient, Client, ServiceError, ServiceUnreachable
from service.settings import Settings
from tests.service.conftest import DEMO, serving
from tests.service.test_api import is_true, truth

README = Path(__file__).parents[2] / "README.md"
TERM = "visibility"


@pytest.fixture
def sayagain(base_url: str) -> Iterator[Client]:
    with Client(base_url) as client:
        yield client


def test_everything_that_reads(sayagain: Client, query_path: Path) -> None:
    (archive,) = sayagain.archives()
    assert (archive.name, archive.recordings) == ("demo", 46)
    recordings = list(sayagain.recordings("demo"))
    assert len(recordings) == 46
    (monday,) = sayagain.recordings("demo", "01-monday")
    assert sayagain.recording(monday.id) == monday
    answer = sayagain.search(query_path, "demo", limit=5)
    assert len(answer.hits) == 5
    assert is_true(answer.hits[0].model_dump(), truth(TERM))
    assert sayagain.search(query_path.read_bytes(), "demo", limit=5).hits == answer.hits
    two = sayagain.search([query_path, query_path], "demo", limit=5)
    assert is_true(two.hits[0].model_dump(), truth(TERM))
    first = answer.hits[0]
    with wave.open(io.BytesIO(sayagain.clip(first.recording.id, first.start, first.end))) as file:
        assert file.getnframes() == round(16_000 * (first.end - first.start))
    again = sayagain.search((first.recording.id, first.start, first.end), "demo", limit=3)
    assert is_true(again.hits[0].model_dump(), truth(TERM))
    refined = sayagain.search(query_path, "demo", limit=5, wrong=[first], right=[answer.hits[1]])
    assert first not in refined.hits
    batch = sayagain.batch([query_path, b"no sound"], "demo", limit=5)
    assert batch.answers[0].answer is not None
    assert batch.answers[0].answer.hits == answer.hits
    assert batch.answers[1].error is not None
    assert batch.answers[1].error.code == "audio_undecodable"
    rows = list(csv.DictReader(io.StringIO(sayagain.export(answer.hits, "csv", TERM).decode())))
    assert [(row["label"], row["recording"]) for row in rows] == [(TERM, hit.recording.name) for hit in answer.hits]


def test_async_says_the_same(base_url: str, sayagain: Client, query_path: Path) -> None:
    async def ask() -> None:
        async with AsyncClient(base_url) as client:
            assert await client.archives() == sayagain.archives()
            assert [r async for r in client.recordings("demo", "monday")] == list(sayagain.recordings("demo", "monday"))
            searches = [client.search(query_path, "demo", limit=5) for _ in range(4)]
            expected = sayagain.search(query_path, "demo", limit=5).hits
            assert [answer.hits for answer in await asyncio.gather(*searches)] == [expected] * 4
            hit = expected[0]
            clip = await client.clip(hit.recording.id, hit.start, hit.end)
            assert clip == sayagain.clip(hit.recording.id, hit.start, hit.end)
            assert (await client.batch([query_path], "demo", limit=5)).answers[0].answer is not None
            assert await client.export(expected, "jsonl") == sayagain.export(expected, "jsonl")
            assert (await client.recording(hit.recording.id)).name == hit.recording.name
            with pytest.raises(ServiceError):
                await client.delete_recording(10**9)

    asyncio.run(ask())


@pytest.fixture(scope="module")
def own_url(tokenizer_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service in which there is nothing, but which may index the demo's folder."""
    settings = Settings(
        home=tmp_path_factory.mktemp("home"), database_url=None, tokenizer=tokenizer_path, threads=1,
        roots=[DEMO / "archive"], webhook_private=True, _env_file=None,
    )  # fmt: skip
    with serving(settings) as url:
        yield url


def test_everything_that_writes(own_url: str, query_path: Path) -> None:
    with Client(own_url) as sayagain:
        assert sayagain.create_archive("a/b").recordings == 0
        files = sorted((DEMO / "archive" / "skerry-radio").iterdir())
        told: list[tuple[int, int]] = []
        about = [{"name": "first.opus", "metadata": {"n": 1}, "external_id": "one"}]
        job = sayagain.upload(files, "a/b", about=about, sent=lambda done, total: told.append((done, total)))
        assert told[-1][0] == told[-1][1] == sum(path.stat().st_size for path in files)
        assert [done for done, _ in told] == sorted({done for done, _ in told})
        seen: list[str] = []
        done = sayagain.wait(job, lambda now: seen.append(now.state))
        assert (done.state, set(seen) <= {"queued", "running"}, bool(seen)) == ("done", True, True)
        assert sayagain.job(job.id) == done
        (first,) = sayagain.recordings("a/b", where={"n": 1})
        assert (first.name, first.external_id) == ("first.opus", "one")
        changed = sayagain.describe(first.id, metadata={"n": 2}, external_id=None)
        assert (changed.metadata, changed.external_id) == ({"n": 2}, None)
        hits = sayagain.search(query_path, "a/b", where={"n": 2}).hits
        assert {hit.recording.name for hit in hits} == {"first.opus"}
        watch = sayagain.watch("word", query_path, "a/b", min_score=0.01, webhook="http://127.0.0.1:9/")
        assert (watch.secret or "").startswith("whsec_")
        job = sayagain.wait(sayagain.index_folder("field-notes", "a/b"))
        assert (job.state, job.report and job.report.indexed) == ("done", 6)
        deadline = time.monotonic() + 60
        while not sayagain.watch_hits(watch.id):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert [one.name for one in sayagain.watches("a/b")] == ["word"]
        sayagain.delete_watch(watch.id)
        with pytest.raises(ServiceError) as refused:
            sayagain.cancel(job.id)
        assert refused.value.code == "job_finished"
        assert job.id in [one.id for one in sayagain.jobs("a/b")]
        for one in sayagain.jobs():
            sayagain.wait(one)
        sayagain.delete_archive("a/b")
        assert sayagain.archives() == []
        with pytest.raises(TypeError, match="no option limit"):
            sayagain.watch("word", query_path, limit=3)


def test_async_writes_the_same(own_url: str, query_path: Path) -> None:
    async def ask() -> None:
        async with AsyncClient(own_url) as client:
            path = DEMO / "archive" / "skerry-radio" / "01-monday.opus"
            told: list[int] = []
            job = await client.upload([path], "b", sent=lambda done, total: told.append(total - done))
            assert told[-1] == 0
            done = await client.wait(job)
            assert (done.state, (await client.job(job.id)).state) == ("done", "done")
            (one,) = [r async for r in client.recordings("b")]
            assert (await client.describe(one.id, external_id="x")).external_id == "x"
            watch = await client.watch("w", query_path, "b")
            assert [w.id for w in await client.watches()] == [watch.id]
            assert await client.watch_hits(watch.id) == []
            await client.delete_watch(watch.id)
            with pytest.raises(ServiceError):
                await client.index_folder("/etc", "b")
            with pytest.raises(ServiceError):
                await client.cancel(job.id)
            assert [j.id for j in await client.jobs("b")] == [job.id]
            assert (await client.create_archive("c")).name == "c"
            for name in ("b", "c"):
                await client.delete_archive(name)

    asyncio.run(ask())


def test_errors_have_the_codes_of_the_service(sayagain: Client, query_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ServiceError) as refused:
        sayagain.search(query_path, "nowhere")
    assert (refused.value.code, refused.value.status) == ("archive_not_found", 404)
    with pytest.raises(ServiceError) as refused:
        sayagain.search(query_path, "demo", limit=0)
    assert (refused.value.code, refused.value.field) == ("invalid_request", "limit")
    with pytest.raises(ServiceError, match="no recording"):
        sayagain.delete_recording(10**9)
    with pytest.raises(TypeError, match="no option speed"):
        sayagain.search(query_path, "demo", speed=2)
    with pytest.raises(FileNotFoundError):
        sayagain.search(tmp_path / "none.wav", "demo")
    with Client("http://127.0.0.1:1") as nobody, pytest.raises(ServiceUnreachable) as silent:
        nobody.archives()
    assert silent.value.code == "service_unreachable"


def recipe(language: str, url: str, number: int = 0) -> str:
    """A recipe of a language in the README, for this service."""
    recipes = README.read_text(encoding="utf-8").split("## From programs")[1]
    return re.findall(rf"```{language}\n(.*?)```", recipes, re.S)[number].replace("http://127.0.0.1:8000", url)


@pytest.mark.parametrize("language", ["", "python", "javascript"])
def test_recipes_of_the_readme(language: str, base_url: str, query_path: Path, tmp_path: Path) -> None:
    shutil.copy(query_path, tmp_path / "clip.wav")
    code = recipe(language, base_url).replace("radio", "demo")
    if language == "python":
        (tmp_path / "recipe.py").write_text(code)
        words = [sys.executable, "recipe.py"]
    elif language == "javascript":
        node = shutil.which("node")
        if node is None:
            pytest.skip("no Node.js here")
        (tmp_path / "recipe.mjs").write_text(code)
        words = [node, "recipe.mjs"]
    else:
        if shutil.which("curl") is None:
            pytest.skip("no curl here")
        words = ["sh", "-ec", code]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(DEMO.parents[1])}
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    names = {name for name, _, _ in truth(TERM)}
    assert sum(name in done.stdout for name in names) >= 4


def test_the_recipe_that_writes(own_url: str, query_path: Path, tmp_path: Path) -> None:
    shutil.copy(query_path, tmp_path / "clip.wav")
    shutil.copy(DEMO / "archive" / "skerry-radio" / "01-monday.opus", tmp_path / "monday.wav")
    imported = next(line for line in recipe("python", own_url).splitlines() if line.startswith("from"))
    (tmp_path / "recipe.py").write_text(f"{imported}\n{recipe('python', own_url, 1)}")
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(DEMO.parents[1])}
    words = [sys.executable, "recipe.py"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    assert "indexed=1" in done.stdout
    assert "name='monday.wav'" in done.stdout
    with Client(own_url) as sayagain:
        assert [watch.name for watch in sayagain.watches("radio")] == ["storm"]
        sayagain.delete_archive("radio")
