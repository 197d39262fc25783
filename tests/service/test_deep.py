"""Deep rescoring: what it hears is what lies there, it stops in time, and what cannot be heard stays as it was."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from indexer import store
from indexer.recordings import RecordingInfo, list_recordings
from model import audio
from model.tokenizer import Tokenizer
from service.app import create_app
from service.clips import read_clip
from service.deps import Backend
from service.search import deep
from service.search.calibration import Evidence
from service.search.deep import PAD_S, DeepRescorer, Stretch
from service.settings import Settings
from tests.service.conftest import DEMO, run_cli
from tests.service.test_api import ask, is_true, truth
from tests.service.test_batch import send
from tests.service.test_refine import mark, refine
from tests.service.test_rescoring import textbook

TERM = "visibility"
FIRST = 4  # hits whose sound is heard in these tests


@pytest.fixture(scope="module")
def deep_settings(settings: Settings, tokenizer_path: Path) -> Settings:
    """The tokenizer that indexed the demo serves here: its embeddings say more than its codes do."""
    return settings.model_copy(update={"deep_tokenizer": str(tokenizer_path), "deep_hits": FIRST, "deep_budget_s": 60})


@pytest.fixture(scope="module")
def deep_client(deep_settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(deep_settings), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def recordings(settings: Settings) -> list[RecordingInfo]:
    """Those of the demo."""
    backend = Backend.open(settings)
    with backend.connect() as connection:
        listed = list_recordings(connection, store.get_archive(connection, "demo").id, 1_000)
    backend.close()
    return listed


@pytest.fixture
def rescorer(tokenizer_path: Path) -> DeepRescorer:
    return DeepRescorer(Tokenizer(tokenizer_path, threads=1))


def some(recordings: list[RecordingInfo], count: int) -> list[Stretch]:
    """Stretches here and there."""
    return [Stretch(r, at, at + 0.8) for r in recordings for at in (1.0, 3.5, 6.0, 11.5)][:count]


def similarity(rescorer: DeepRescorer, stretches: list[Stretch], seconds: float = 60.0) -> np.ndarray:
    """Of the demo's query; nothing is known before."""
    example = rescorer.hear(read_clip(DEMO / "query.opus", 60.0))
    nothing = Evidence(np.zeros(len(stretches), np.float32), np.zeros(len(stretches), np.float32))
    return rescorer.similarity([example], stretches, nothing, time.monotonic() + seconds)


def alone(rescorer: DeepRescorer, stretch: Stretch) -> np.ndarray:
    """Embeddings of a stretch and of what lies around it, in a run of its own."""
    low, high = (round(at / 0.04) * 640 for at in (stretch.start_s - PAD_S, stretch.end_s + PAD_S))
    return rescorer.tokenizer.embed(audio.read(stretch.recording.path)[low:high])


def like(rescorer: DeepRescorer, example: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Cosines, less half of what each row has with the ten centroids that are nearest to it, but for a constant."""
    centroids = rescorer.tokenizer.codebook.centroids
    between = np.sort(centroids @ centroids.T, axis=1)[:, -11:-1].mean()
    return example @ rows.T - (np.sort(rows @ centroids.T, axis=1)[:, -10:].mean(axis=1) - between) / 2


def test_each_stretch_is_as_like_the_query_as_its_sound_says(
    rescorer: DeepRescorer, recordings: list[RecordingInfo], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deep, "WEIGHT", 0.0)  # no second look
    example = rescorer.hear(read_clip(DEMO / "query.opus", 60.0))
    stretches = some(recordings, 40)
    for stretch, found in zip(stretches, similarity(rescorer, stretches), strict=True):
        expected = textbook(like(rescorer, example, alone(rescorer, stretch)))[:, 0].max()
        assert found == pytest.approx(expected, abs=2e-3)  # remembered in half precision


def test_the_best_stretch_is_one_more_example(
    rescorer: DeepRescorer, recordings: list[RecordingInfo], monkeypatch: pytest.MonkeyPatch
) -> None:
    stretches = some(recordings, 12)
    once = similarity(rescorer, stretches)
    monkeypatch.setattr(deep, "WEIGHT", 0.0)
    first = similarity(rescorer, stretches)
    best = int(first.argmax())
    monkeypatch.setattr(deep, "WEIGHT", 1e9)  # the example alone
    again = similarity(rescorer, stretches)
    example = rescorer.hear(read_clip(DEMO / "query.opus", 60.0))
    rows = alone(rescorer, stretches[best])
    paths = textbook(like(rescorer, example, rows))
    end = int(paths[:, 0].argmax())
    second = rows[int(paths[end, 1]) : end + 1]
    for number, stretch in enumerate(stretches):
        if number != best:
            expected = textbook(like(rescorer, second, alone(rescorer, stretch)))[:, 0].max()
            assert again[number] == pytest.approx(expected, abs=2e-3)
            assert min(first[number], again[number]) <= once[number] <= max(first[number], again[number])


def test_what_was_heard_is_remembered(
    rescorer: DeepRescorer, recordings: list[RecordingInfo], monkeypatch: pytest.MonkeyPatch
) -> None:
    stretches = some(recordings, 40)
    first = similarity(rescorer, stretches)
    example = rescorer.hear(read_clip(DEMO / "query.opus", 60.0))
    monkeypatch.setattr(rescorer, "hear", lambda clip: example)
    monkeypatch.setattr(rescorer.tokenizer, "embed", None)
    np.testing.assert_array_equal(similarity(rescorer, stretches[::-1], 0.0)[::-1], first)


def test_one_is_heard_when_there_is_no_time_and_the_rest_the_next_time(
    rescorer: DeepRescorer, recordings: list[RecordingInfo]
) -> None:
    stretches = some(recordings, 40)
    for number in range(1, 5):
        known = ~np.isnan(similarity(rescorer, stretches, 0.0))
        assert known.tolist() == [True] * number + [False] * (40 - number)  # the likest hits come first
    assert not np.isnan(similarity(rescorer, stretches)).any()


def test_hits_are_in_the_order_of_their_new_scores(deep_client: TestClient, query_path: Path) -> None:
    plain = ask(deep_client, query_path.read_bytes(), limit=20).json()
    deep = ask(deep_client, query_path.read_bytes(), limit=20, rescore="deep").json()
    assert plain["timing_ms"]["deep"] == 0
    assert deep["timing_ms"]["deep"] > 0
    assert all(hit["deep_similarity"] is None for hit in plain["hits"])
    places = [[(hit["recording"]["id"], hit["start"]) for hit in answer["hits"]] for answer in (plain, deep)]
    assert len(set(places[1])) == 20
    heard = [hit for hit in deep["hits"] if hit["deep_similarity"] is not None]
    assert {(hit["recording"]["id"], hit["start"]) for hit in heard} <= set(places[0][:FIRST])
    scores = [hit["score"] for hit in deep["hits"]]
    assert scores == sorted(scores, reverse=True)
    assert is_true(deep["hits"][0], truth(TERM))
    assert deep["hits"][0]["deep_similarity"] > 0.5
    unheard = {place: hit["score"] for place, hit in zip(places[0][FIRST:], plain["hits"][FIRST:], strict=True)}
    for place, hit in zip(places[1], deep["hits"], strict=True):
        if hit["deep_similarity"] is None and place in unheard:
            assert hit["score"] == unheard[place]


def test_the_limits_hold_for_the_new_scores(deep_client: TestClient, query_path: Path) -> None:
    deep = ask(deep_client, query_path.read_bytes(), limit=20, rescore="deep").json()["hits"]
    least = deep[2]["score"]
    again = ask(deep_client, query_path.read_bytes(), limit=20, rescore="deep", min_score=least).json()["hits"]
    assert [hit["score"] for hit in again] == [hit["score"] for hit in deep if hit["score"] >= least]
    assert ask(deep_client, query_path.read_bytes(), limit=1, rescore="deep").json()["hits"] == deep[:1]


def test_a_stretch_a_batch_and_a_refined_search_are_rescored_too(deep_client: TestClient, query_path: Path) -> None:
    clip = query_path.read_bytes()
    hits = ask(deep_client, clip, limit=3, rescore="deep").json()["hits"]
    stretch = deep_client.post("/v1/search", data={"archive": "demo", "rescore": "deep", **mark(hits[0])}).json()
    assert stretch["hits"][0]["deep_similarity"] > 0.5
    assert is_true(stretch["hits"][0], truth(TERM))
    batch = send(deep_client, ("a.opus", clip), ("b.opus", clip), limit=3, rescore="deep").json()
    assert [one["answer"]["hits"] for one in batch["answers"]] == [hits, hits]
    refined = refine(deep_client, clip, wrong=[mark(hits[0])], rescore="deep").json()["hits"]
    assert mark(hits[0]) not in [mark(hit) for hit in refined]
    assert any(hit["deep_similarity"] is not None for hit in refined)


def test_without_its_tokenizer_it_says_how_to_get_one(client: TestClient, query_path: Path) -> None:
    answer = ask(client, query_path.read_bytes(), rescore="deep")
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["field"]) == (409, "deep_unavailable", "rescore")
    assert "sayagain tokenizer build accurate" in error["message"]
    assert ask(client, query_path.read_bytes(), rescore="deeper").status_code == 422


def test_sound_that_is_gone_or_has_changed_is_not_heard(tmp_path: Path, tokenizer_path: Path) -> None:
    folder, home = tmp_path / "archive", tmp_path / "home"
    shutil.copytree(DEMO / "archive" / "skerry-radio", folder)

    def run(*words: str | Path) -> "subprocess.CompletedProcess[str]":
        return run_cli(home, tokenizer_path, *words)

    assert run("index", folder, "--archive", "demo").returncode == 0
    own = Settings(
        home=home, database_url=None, tokenizer=tokenizer_path, threads=1, deep_tokenizer=str(tokenizer_path),
        deep_hits=1_000, deep_budget_s=60, _env_file=None,
    )  # fmt: skip
    clip = (DEMO / "query.opus").read_bytes()
    with TestClient(create_app(own)) as client:
        before = ask(client, clip, limit=5, rescore="deep").json()["hits"]
        assert all(hit["deep_similarity"] is not None for hit in before)
        gone, changed = before[0]["recording"]["name"], before[1]["recording"]["name"]
        assert gone != changed
        (folder / gone).unlink()
        (folder / changed).write_bytes((folder / changed).read_bytes() + b"more")
    with TestClient(create_app(own)) as client:
        after = ask(client, clip, limit=50, rescore="deep").json()["hits"]
        for hit in after:
            assert (hit["deep_similarity"] is None) == (hit["recording"]["name"] in (gone, changed))
        stretch = client.post("/v1/search", data={"archive": "demo", "rescore": "deep", **mark(before[0])})
        assert (stretch.status_code, stretch.json()["error"]["code"]) == (409, "deep_unavailable")
