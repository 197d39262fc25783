"""Archives and recordings over HTTP: made, shown, deleted; their sound whole, in stretches and as pictures."""

import io
import os
import shutil
import wave
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from fastapi.testclient import TestClient

from model import audio
from service.app import create_app
from service.settings import Settings
from service.sound import media_type
from tests.service.conftest import DEMO, run_cli
from tests.service.test_api import ask

NAME = "04-thursday.opus"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings that tests may spoil."""
    return Path(shutil.copytree(DEMO / "archive" / "skerry-radio", tmp_path_factory.mktemp("own") / "radio"))


@pytest.fixture(scope="module")
def own(folder: Path, tokenizer_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A service whose archive `demo` has these."""
    home = tmp_path_factory.mktemp("home")
    done = run_cli(home, tokenizer_path, "index", folder, "--archive", "demo")
    assert done.returncode == 0, done.stderr
    settings = Settings(
        home=home, database_url=None, tokenizer=tokenizer_path, threads=1, max_clip_s=15, _env_file=None
    )
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


def listed(client: TestClient) -> dict[str, int]:
    """Ids by name."""
    page = client.get("/v1/recordings", params={"archive": "demo"}).json()
    return {recording["name"]: recording["id"] for recording in page["recordings"]}


def test_the_sound_of_a_recording_comes_whole_or_by_ranges(own: TestClient, folder: Path) -> None:
    url = f"/v1/recordings/{listed(own)[NAME]}/audio"
    blob = (folder / NAME).read_bytes()
    whole = own.get(url)
    assert (whole.status_code, whole.content) == (200, blob)
    assert whole.headers["content-type"].startswith("audio/")
    part = own.get(url, headers={"Range": "bytes=100-299"})
    assert (part.status_code, part.content) == (206, blob[100:300])
    assert part.headers["content-range"] == f"bytes 100-299/{len(blob)}"
    assert own.get(url, headers={"Range": f"bytes={len(blob)}-"}).status_code == 416


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.mp3", "audio/mpeg"),
        ("a.html", "application/octet-stream"),
        ("a.svg", "application/octet-stream"),
        ("a", "application/octet-stream"),
    ],
)
def test_what_is_no_sound_by_its_name_is_bytes(name: str, expected: str) -> None:
    assert media_type(Path(name)) == expected


def test_a_clip_is_the_stretch_as_wav(own: TestClient, folder: Path) -> None:
    url = f"/v1/recordings/{listed(own)[NAME]}/clip"
    answer = own.get(url, params={"start": 7.0, "end": 7.8})
    assert answer.headers["content-type"] == "audio/wav"
    with wave.open(io.BytesIO(answer.content)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16_000, 1, 2)
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32_767
    expected = audio.read(folder / NAME)[112_000:124_800]
    np.testing.assert_allclose(samples, expected, atol=1e-4)
    # The clip is a query like any other: its own place is found first.
    hits = ask(own, answer.content).json()["hits"]
    assert (hits[0]["recording"]["name"], round(hits[0]["start"])) == (NAME, 7)


def test_peaks_are_the_waveform(own: TestClient, folder: Path) -> None:
    url = f"/v1/recordings/{listed(own)[NAME]}/peaks"
    drawn = own.get(url, params={"start": 2.0, "end": 4.0, "points": 50}).json()
    parts = audio.read(folder / NAME)[32_000:64_000].reshape(50, -1)
    assert (drawn["start"], drawn["end"]) == (2.0, 4.0)
    np.testing.assert_allclose(drawn["peaks"], np.stack([parts.min(1), parts.max(1)], 1), atol=1e-4)
    assert len(own.get(url, params={"start": 2.0, "end": 2.001, "points": 50}).json()["peaks"]) == 16


def test_a_spectrogram_is_dark_where_it_is_loud(own: TestClient, folder: Path) -> None:
    url = f"/v1/recordings/{listed(own)[NAME]}/spectrogram"
    answer = own.get(url, params={"start": 0.0, "end": 9.0, "width": 300, "height": 120})
    assert answer.headers["content-type"] == "image/png"
    with av.open(io.BytesIO(answer.content)) as file:
        picture = next(file.decode(video=0)).to_ndarray(format="gray")
    assert picture.shape == (120, 300)
    loud = np.square(audio.read(folder / NAME)[: 16_000 * 9].reshape(300, -1)).mean(1)
    columns = picture.mean(0)
    assert columns[np.argsort(loud)[-50:]].mean() < columns[np.argsort(loud)[:50]].mean() - 40


@pytest.mark.parametrize("what", ["clip", "peaks", "spectrogram"])
@pytest.mark.parametrize(
    ("query", "code", "field"),
    [
        ({"start": 3, "end": 2}, "bad_stretch", "end"),
        ({"start": 5_000}, "bad_stretch", "end"),
        ({"start": 0, "end": 15.5}, "bad_stretch", "end"),
        ({"start": -1}, "invalid_request", "start"),
        ({"start": "nan"}, "invalid_request", "start"),
        ({"end": "inf"}, "invalid_request", "end"),
    ],
)
def test_stretches_that_are_none(own: TestClient, what: str, query: dict[str, object], code: str, field: str) -> None:
    answer = own.get(f"/v1/recordings/{listed(own)[NAME]}/{what}", params=query)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["field"]) == (422, code, field)


@pytest.mark.parametrize("what", ["", "/audio", "/clip", "/peaks", "/spectrogram"])
def test_recordings_that_are_none(own: TestClient, what: str) -> None:
    answer = own.get(f"/v1/recordings/{10**9}{what}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "recording_not_found")
    for number in (-1, 2**63, "one"):
        assert own.get(f"/v1/recordings/{number}{what}").json()["error"]["code"] == "invalid_request"


def test_a_file_that_is_gone_or_changed_is_not_served(own: TestClient, folder: Path) -> None:
    names = listed(own)
    (folder / "01-monday.opus").unlink()
    os.utime(folder / "02-tuesday.opus", (1, 1))
    for name in ("01-monday.opus", "02-tuesday.opus"):
        for what in ("audio", "clip", "peaks", "spectrogram"):
            answer = own.get(f"/v1/recordings/{names[name]}/{what}", params={"end": 2})
            assert (answer.status_code, answer.json()["error"]["code"]) == (410, "audio_gone")
            assert str(folder) not in answer.text


def test_deleted_recordings_are_found_no_more(own: TestClient, query_path: Path) -> None:
    def found() -> set[str]:
        return {hit["recording"]["name"] for hit in ask(own, query_path.read_bytes(), limit=1_000).json()["hits"]}

    names = listed(own)
    by_id, by_name = "06-saturday.opus", "01-monday.opus"  # the file of the second is gone
    assert {by_id, by_name} <= found()
    assert own.get(f"/v1/recordings/{names[by_id]}").json()["name"] == by_id
    assert own.delete(f"/v1/recordings/{names[by_id]}").status_code == 204
    assert own.delete("/v1/recordings", params={"archive": "demo", "name": by_name}).status_code == 204
    assert not {by_id, by_name} & found()
    assert not {by_id, by_name} & set(listed(own))
    again = own.delete(f"/v1/recordings/{names[by_id]}")
    assert (again.status_code, again.json()["error"]["code"]) == (404, "recording_not_found")
    again = own.delete("/v1/recordings", params={"archive": "demo", "name": by_name})
    assert (again.status_code, again.json()["error"]["code"]) == (404, "recording_not_found")


@pytest.mark.parametrize("name", ["new", "a/b c?d", "മലയാളം", "50 %"])
def test_archives_are_made_shown_and_deleted(own: TestClient, name: str, query_path: Path) -> None:
    from urllib.parse import quote

    url = f"/v1/archives/{quote(name)}"
    made = own.post("/v1/archives", json={"name": name})
    assert made.status_code == 201
    assert (made.json()["name"], made.json()["recordings"], made.json()["codebook"]) == (name, 0, None)
    assert own.get(url).json() == made.json()
    again = own.post("/v1/archives", json={"name": name})
    assert (again.status_code, again.json()["error"]["code"]) == (409, "archive_name_taken")
    answer = ask(own, query_path.read_bytes(), archive=name)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "archive_not_ready")
    assert own.delete(url).status_code == 204
    for gone in (own.get(url), own.delete(url)):
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "archive_not_found")


@pytest.mark.parametrize("body", [{}, {"name": ""}, {"name": " "}, {"name": "x" * 201}, {"name": "a", "more": 1}])
def test_archives_that_cannot_be_made(own: TestClient, body: dict[str, object]) -> None:
    answer = own.post("/v1/archives", json=body)
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] in ("invalid_request", "archive_name_invalid")
