"""Many clips at once: each is answered as it is alone, and one that is bad harms no other."""

import threading
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.clips import Clip, read_clip
from service.deps import Backend
from service.errors import NoSpeech
from service.search.answer import Answer, Request
from service.settings import Settings
from tests.indexer import sounds
from tests.service.conftest import DEMO
from tests.service.test_api import ask


def send(client: TestClient, *clips: tuple[str, bytes], **form: object):
    files = [("file", clip) for clip in clips]
    return client.post("/v1/search/batch", files=files, data={"archive": "demo", **form})


@pytest.fixture(scope="module")
def clips() -> list[tuple[str, bytes]]:
    """The query, and the beginnings of a few recordings."""
    paths = [DEMO / "query.opus", *sorted((DEMO / "archive").rglob("*.opus"))[:3]]
    return [(path.name, path.read_bytes()) for path in paths]


def test_each_clip_is_answered_as_it_is_alone(client: TestClient, clips: list[tuple[str, bytes]]) -> None:
    answer = send(client, *clips, limit=7).json()
    assert [one["file"] for one in answer["answers"]] == [name for name, _ in clips]
    for one, (_, clip) in zip(answer["answers"], clips, strict=True):
        assert one["error"] is None
        assert one["answer"]["hits"] == ask(client, clip, limit=7).json()["hits"]
        assert one["answer"]["timing_ms"]["total"] > 0
    assert answer["queries_per_second"] == pytest.approx(len(clips) / answer["total_ms"] * 1e3, rel=0.01)


def test_a_bad_clip_has_its_error_in_its_place(
    client: TestClient, clips: list[tuple[str, bytes]], tmp_path: Path
) -> None:
    silence = sounds.write(tmp_path / "silence.wav", np.zeros(16_000, np.float32)).read_bytes()
    bad = [("text.wav", b"no sound"), clips[0], ("silence.wav", silence), ("empty.wav", b"")]
    answers = send(client, *bad).json()["answers"]
    assert [one["error"] and one["error"]["code"] for one in answers] == [
        "audio_undecodable", None, "no_speech", "audio_empty",
    ]  # fmt: skip
    assert answers[1]["answer"]["hits"] == ask(client, clips[0][1]).json()["hits"]
    assert all(one["answer"] is None for one in answers if one["error"])


def test_limits_and_unknown_archives(settings: Settings, client: TestClient, clips: list[tuple[str, bytes]]) -> None:
    assert send(client, clips[0], archive="none").json()["error"]["code"] == "archive_not_found"
    assert send(client).json()["error"] | {"message": ""} == {
        "code": "invalid_request", "message": "", "field": "file",
    }  # fmt: skip
    with TestClient(create_app(settings.model_copy(update={"max_batch": 2, "max_upload_mb": 0.02}))) as small:
        assert send(small, *clips[:3]).json()["error"]["code"] == "too_many_clips"
        large = send(small, ("long.wav", b"0" * 30_000), clips[0]).json()["answers"]
        assert large[0]["error"]["code"] == "upload_too_large"


def test_threads_may_share_an_engine(settings: Settings) -> None:
    backend = Backend.open(settings)
    good = read_clip(DEMO / "query.opus", 30.0)
    nothing = np.zeros(0, np.float32)
    silent = Clip(nothing, np.zeros(16_000, np.float32), nothing, 0.0, 1.0)
    requests = [Request([good], "demo"), Request([silent], "demo"), Request([good], "demo", limit=3)]
    expected = backend.search.search(requests[0])
    found: list[list[Answer | Exception]] = []
    threads = [threading.Thread(target=lambda: found.append(backend.search.search_many(requests))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for first, second, third in found:
        assert isinstance(first, Answer)
        assert isinstance(third, Answer)
        assert isinstance(second, NoSpeech)
        assert first.hits == expected.hits
        assert third.hits == expected.hits[:3]
    with pytest.raises(ValueError, match="one archive"):
        backend.search.search_many([requests[0], Request([good], "other")])
    backend.close()
