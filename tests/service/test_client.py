"""The client against a real service, and the README's recipes as they stand there."""

import asyncio
import csv
import io
import re
import shutil
import subprocess
import sys
import wave
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.client import AsyncClient, Client, ServiceError, ServiceUnreachable
from tests.service.conftest import DEMO
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


def recipe(language: str, base_url: str) -> str:
    """The README's first recipe of a language, for this service and the demo archive."""
    recipes = README.read_text(encoding="utf-8").split("## From programs")[1]
    block = re.search(rf"```{language}\n(.*?)```", recipes, re.S)
    assert block is not None
    return block[1].replace("http://127.0.0.1:8000", base_url).replace("radio", "demo")


@pytest.mark.parametrize("language", ["", "python", "javascript"])
def test_recipes_of_the_readme(language: str, base_url: str, query_path: Path, tmp_path: Path) -> None:
    shutil.copy(query_path, tmp_path / "clip.wav")
    code = recipe(language, base_url)
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
