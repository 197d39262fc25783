import csv
import json
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.clips import read_clip
from service.deps import Backend
from service.search.answer import Request
from service.settings import Settings
from tests.service.conftest import DEMO
from tests.service.sounds import encode


def ask(client: TestClient, *clips: bytes, **form: object):
    return client.post(
        "/v1/search", files=[("file", ("clip", clip)) for clip in clips], data={"archive": "demo", **form}
    )


def truth(term: str) -> list[tuple[str, float, float]]:
    with (DEMO / "truth.tsv").open(encoding="utf-8") as file:
        rows = csv.DictReader(file, delimiter="\t")
        return [(r["recording"], float(r["start"]), float(r["end"])) for r in rows if r["term"] == term]


def is_true(hit: dict, places: list[tuple[str, float, float]]) -> bool:
    middle = (hit["start"] + hit["end"]) / 2
    return any(hit["recording"]["name"] == name and a - 0.3 <= middle <= b + 0.3 for name, a, b in places)


def test_the_answer_has_the_form_of_the_contract(client: TestClient, query_path: Path) -> None:
    answer = ask(client, query_path.read_bytes(), limit=7).json()
    assert list(answer) == ["query", "hits", "timing_ms", "searched"]
    assert list(answer["query"]) == ["duration", "speech", "tokens", "tokenizer"]
    assert list(answer["hits"][0]) == [
        "rank",
        "recording",
        "start",
        "end",
        "score",
        "edit_similarity",
        "dtw_similarity",
        "deep_similarity",
    ]
    assert list(answer["hits"][0]["recording"]) == ["id", "name", "duration", "external_id"]
    assert list(answer["timing_ms"]) == ["tokenize", "candidates", "alignment", "rescoring", "deep", "total"]
    assert list(answer["searched"]) == ["recordings", "hours"]
    assert len(answer["hits"]) == 7
    assert [hit["rank"] for hit in answer["hits"]] == list(range(1, 8))
    scores = [hit["score"] for hit in answer["hits"]]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    start, end = answer["query"]["speech"]
    assert 0 <= start < end <= answer["query"]["duration"]
    recordings = sum(1 for path in (DEMO / "archive").rglob("*.opus"))
    assert answer["searched"]["recordings"] == recordings
    for hit in answer["hits"]:
        assert 0 <= hit["start"] < hit["end"] <= hit["recording"]["duration"] + 0.05
        assert (DEMO / "archive" / hit["recording"]["name"]).exists()


def test_the_word_is_found_where_it_is_said(client: TestClient, query_path: Path) -> None:
    hits = ask(client, query_path.read_bytes()).json()["hits"]
    places = truth("visibility")
    assert len(places) >= 3
    assert is_true(hits[0], places)
    assert sum(is_true(hit, places) for hit in hits[: len(places)]) >= 2


def with_terms() -> list[str]:
    with (DEMO / "terms.tsv").open(encoding="utf-8") as file:
        return [row["term"] for row in csv.DictReader(file, delimiter="\t")]


def test_most_terms_of_the_demo_are_found_first(client: TestClient) -> None:
    with (DEMO / "terms.tsv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    first = [
        is_true(ask(client, (DEMO / row["clip"]).read_bytes()).json()["hits"][0], truth(row["term"])) for row in rows
    ]
    assert sum(first) >= 0.8 * len(rows)


@pytest.mark.parametrize("gain", [1.0, 0.03])
def test_quiet_or_with_silence_around_the_best_hit_stays(client: TestClient, query: np.ndarray, gain: float) -> None:
    places = truth("visibility")
    silence = np.zeros(24_000, np.float32)
    clip = encode(np.concatenate([silence, gain * query, silence]))
    answer = ask(client, clip).json()
    assert is_true(answer["hits"][0], places)
    assert answer["query"]["speech"][0] == pytest.approx(1.5, abs=0.3)


def test_a_stretch_of_running_speech_can_be_the_query(client: TestClient) -> None:
    name, start, end = truth("visibility")[0]
    clip = (DEMO / "archive" / name).read_bytes()
    hits = ask(client, clip, start=start, end=end).json()["hits"]
    assert all(is_true(hit, truth("visibility")) for hit in hits[:3])
    # Its own place is among the first; others are said alike enough to come before it.
    own = next(hit for hit in hits[:3] if hit["recording"]["name"] == name)
    assert own["start"] == pytest.approx(start, abs=0.2)
    assert own["end"] == pytest.approx(end, abs=0.2)
    assert own["score"] > 0.5
    assert own["edit_similarity"] > 0.7


@pytest.mark.parametrize(
    ("kind", "codec", "rate", "layout"),
    [
        ("flac", "flac", 44_100, "stereo"),
        ("mp3", "libmp3lame", 44_100, "mono"),
        ("ogg", "libopus", 48_000, "mono"),
        ("mp4", "aac", 48_000, "stereo"),
        ("webm", "libopus", 48_000, "mono"),
        ("wav", "pcm_s16le", 8_000, "mono"),
        ("wav", "pcm_s16le", 96_000, "5.1"),
    ],
)
def test_any_format_rate_and_channels(
    client: TestClient, query: np.ndarray, kind: str, codec: str, rate: int, layout: str
) -> None:
    time = np.arange(int(len(query) / 16_000 * rate)) / rate
    samples = np.interp(time, np.arange(len(query)) / 16_000, query)
    channels = {"mono": 1, "stereo": 2, "5.1": 6}[layout]
    clip = encode(np.tile(samples, (channels, 1)), rate, kind, codec, layout)
    answer = ask(client, clip)
    assert answer.status_code == 200, answer.text
    assert is_true(answer.json()["hits"][0], truth("visibility"))


def test_clipped_speech_is_still_searched(client: TestClient, query: np.ndarray) -> None:
    answer = ask(client, encode(np.clip(20 * query, -1, 1)))
    assert answer.status_code == 200
    assert answer.json()["hits"]


def test_a_truncated_mp3_is_searched_as_far_as_it_goes(client: TestClient, query: np.ndarray) -> None:
    whole = encode(query, 16_000, "mp3", "libmp3lame")
    answer = ask(client, whole[: int(0.8 * len(whole))])
    assert answer.status_code == 200
    assert 0.5 * len(query) / 16_000 < answer.json()["query"]["duration"] < 0.95 * len(query) / 16_000


RATE = 16_000
NOISE = (0.1 * np.random.default_rng(0).standard_normal(70 * RATE)).astype(np.float32)


@pytest.mark.parametrize(
    ("clip", "status", "code"),
    [
        (b"", 400, "audio_empty"),
        (b"this is text, named .wav by somebody", 400, "audio_undecodable"),
        (encode(np.zeros((1, 0), np.float32)), 400, "audio_empty"),
        (encode(np.zeros(2 * RATE, np.float32)), 422, "no_speech"),
        (encode(NOISE[: int(0.02 * RATE)]), 422, "no_speech"),
        (encode(NOISE), 413, "query_too_long"),
    ],
    ids=["empty", "text", "zero samples", "silence", "20 ms", "too long"],
)
def test_bad_clips_get_a_stable_code_and_one_line(client: TestClient, clip: bytes, status: int, code: str) -> None:
    answer = ask(client, clip)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert set(answer.json()["error"]) <= {"code", "message", "field"}
    assert "\n" not in answer.json()["error"]["message"]


def test_a_two_hour_query_is_refused_soon(client: TestClient) -> None:
    hours = encode(np.zeros(2 * 3600 * 8_000, np.float32) + 1e-3, 8_000, "ogg", "libopus")
    answer = ask(client, hours)
    assert answer.json()["error"]["code"] == "query_too_long"
    assert answer.elapsed.total_seconds() < 5


@pytest.mark.parametrize(
    ("form", "status", "code", "field"),
    [
        ({"archive": "nowhere"}, 404, "archive_not_found", None),
        ({"limit": 0}, 422, "invalid_request", "limit"),
        ({"min_score": 2}, 422, "invalid_request", "min_score"),
        ({"start": 5000, "end": 5001}, 422, "bad_stretch", "start"),
        ({"start": 0.5, "end": 0.2}, 422, "bad_stretch", "end"),
        ({"exact": "perhaps"}, 422, "invalid_request", "exact"),
    ],
)
def test_bad_requests_name_the_field(
    client: TestClient, query_path: Path, form: dict, status: int, code: str, field: str | None
) -> None:
    answer = ask(client, query_path.read_bytes(), **form)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    assert field is None or error["field"] == field


def test_no_file_unknown_path_wrong_method(client: TestClient) -> None:
    assert client.post("/v1/search").json()["error"] == {
        "code": "invalid_request", "message": "a clip, or a recording with start and end, is needed", "field": "file",
    }  # fmt: skip
    assert client.get("/v1/nothing").json()["error"]["code"] == "not_found"
    assert client.delete("/v1/search").json()["error"]["code"] == "method_not_allowed"


def test_too_many_clips_and_too_large_ones(settings: Settings, query_path: Path) -> None:
    small = settings.model_copy(update={"max_clips": 2, "max_upload_mb": 0.001})
    with TestClient(create_app(small)) as client:
        assert ask(client, b"a", b"b", b"c").json()["error"]["code"] == "too_many_clips"
        large = ask(client, query_path.read_bytes())
        assert (large.status_code, large.json()["error"]["code"]) == (413, "upload_too_large")


def test_the_cascade_finds_what_an_exact_search_finds(client: TestClient, query_path: Path) -> None:
    clip = query_path.read_bytes()
    exact = ask(client, clip, exact="true", limit=20).json()["hits"]
    cascade = ask(client, clip, limit=20).json()["hits"]
    assert cascade[:8] == exact[:8]
    assert len({(h["recording"]["id"], h["start"]) for h in exact + cascade}) <= 22


def test_few_candidates_still_find_the_best_hits(settings: Settings, query_path: Path) -> None:
    shallow = settings.model_copy(update={"candidate_depth": 20})
    with TestClient(create_app(shallow)) as client:
        hits = ask(client, query_path.read_bytes()).json()["hits"]
        assert is_true(hits[0], truth("visibility"))
        exact = ask(client, query_path.read_bytes(), exact="true").json()["hits"]
        assert hits[0]["recording"] == exact[0]["recording"]


def recording_of(client: TestClient, name: str) -> dict:
    listed = client.get("/v1/recordings", params={"archive": "demo", "contains": name}).json()
    return listed["recordings"][0]


def refer(client: TestClient, **form: object):
    return client.post("/v1/search", data={"archive": "demo", **form})


def test_a_stretch_of_an_indexed_recording_can_be_the_query_without_its_sound(client: TestClient) -> None:
    places = truth("visibility")
    name, start, end = places[0]
    recording = recording_of(client, name)
    answer = refer(client, recording=recording["id"], start=start, end=end).json()
    assert answer["query"]["duration"] == recording["duration"]
    assert answer["query"]["speech"] == pytest.approx([start, end], abs=0.05)
    assert answer["query"]["tokens"] >= 5
    assert all(is_true(hit, places) for hit in answer["hits"][:3])
    # What is asked about is no answer.
    assert not any(is_true(hit, places[:1]) for hit in answer["hits"])
    # The codes are those of the sound, so the answer is much the same.
    clip = (DEMO / "archive" / name).read_bytes()
    heard = {
        (h["recording"]["id"], round(h["start"])) for h in ask(client, clip, start=start, end=end).json()["hits"][:6]
    }
    remembered = {(h["recording"]["id"], round(h["start"])) for h in answer["hits"][:6]}
    assert len(heard & remembered) >= 4


@pytest.mark.parametrize(
    ("form", "status", "code", "field"),
    [
        ({"recording": 10**9, "start": 1, "end": 2}, 404, "recording_not_found", None),
        ({"recording": 2**63, "start": 1, "end": 2}, 422, "invalid_request", "recording"),
        ({"recording": -1, "start": 1, "end": 2}, 422, "invalid_request", "recording"),
        ({"recording": "here", "start": 5000, "end": 5001}, 422, "bad_stretch", "start"),
        ({"recording": "here", "start": 2, "end": 1}, 422, "bad_stretch", "end"),
        ({"recording": "here", "start": 1, "end": 1.04}, 422, "bad_stretch", "start"),
        ({"recording": "here", "start": 1, "end": 4000}, 413, "query_too_long", "end"),
        ({"recording": "here", "start": 1}, 422, "invalid_request", "end"),
        ({"recording": "here", "end": 1}, 422, "invalid_request", "start"),
        ({"recording": "monday"}, 422, "invalid_request", "recording"),
    ],
)
def test_references_that_lead_nowhere(
    client: TestClient, form: dict[str, object], status: int, code: str, field: str | None
) -> None:
    if form["recording"] == "here":
        form = {**form, "recording": recording_of(client, "monday")["id"]}
    answer = refer(client, **form)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert field is None or answer.json()["error"]["field"] == field


def test_a_clip_and_a_recording_do_not_go_together(client: TestClient, query_path: Path) -> None:
    number = recording_of(client, "monday")["id"]
    error = ask(client, query_path.read_bytes(), recording=number, start=1, end=2).json()["error"]
    assert (error["code"], error["field"]) == ("invalid_request", "recording")


def test_excluded_recordings_are_as_if_they_were_not_there(settings: Settings, query_path: Path) -> None:
    backend = Backend.open(settings)
    clip = read_clip(query_path, 30.0)

    def names(exclude: frozenset[str]) -> list[str]:
        answer = backend.search.search(Request([clip], "demo", 10, exclude=exclude))
        return [hit.recording.name for hit in answer.hits]

    whole = names(frozenset())
    without = names(frozenset({whole[0], "no such recording"}))
    assert whole[0] not in without
    assert set(whole[1:4]) <= set(without)
    backend.close()


def test_min_score_cuts(client: TestClient, query_path: Path) -> None:
    everything = ask(client, query_path.read_bytes(), limit=1000).json()["hits"]
    cut = (everything[4]["score"] + everything[5]["score"]) / 2
    some = ask(client, query_path.read_bytes(), limit=1000, min_score=cut).json()["hits"]
    assert some == everything[:5]


def test_two_clips_of_a_term_are_one_question(client: TestClient, query_path: Path) -> None:
    clip = query_path.read_bytes()
    hits, alone = ask(client, clip, clip).json()["hits"], ask(client, clip).json()["hits"]
    assert {h["recording"]["name"] for h in hits[:8]} == {h["recording"]["name"] for h in alone[:8]}


def test_archives_and_recordings_are_listed(client: TestClient) -> None:
    (archive,) = client.get("/v1/archives").json()["archives"]
    assert archive["name"] == "demo"
    assert archive["codebook"] == "archive"
    assert archive["bytes"] > 0
    first = client.get("/v1/recordings", params={"archive": "demo", "limit": 10}).json()
    assert len(first["recordings"]) == 10
    assert first["next_offset"] == 10
    seen, offset = [], 0
    while offset is not None:
        page = client.get("/v1/recordings", params={"archive": "demo", "limit": 17, "offset": offset}).json()
        seen += [recording["name"] for recording in page["recordings"]]
        offset = page["next_offset"]
    on_disk = {str(path.relative_to(DEMO / "archive")) for path in (DEMO / "archive").rglob("*.opus")}
    assert sorted(seen) == sorted(on_disk)
    assert len(seen) == archive["recordings"]
    some = client.get("/v1/recordings", params={"archive": "demo", "contains": "monday"}).json()["recordings"]
    assert [r["name"] for r in some] == sorted(name for name in on_disk if "monday" in name)
    assert client.get("/v1/recordings", params={"archive": "x"}).json()["error"]["code"] == "archive_not_found"


def test_health_and_readiness(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    ready = client.get("/readyz")
    assert (ready.status_code, ready.json()["ready"], ready.json()["reasons"]) == (200, True, [])


def test_a_database_that_is_down_is_said_so(
    tokenizer_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from indexer import database
    from service import deps

    # The schema check at the start would refuse; here the database goes away after it.
    monkeypatch.setattr(database, "check", lambda engine: None)
    down = Settings(
        home=tmp_path,
        database_url="postgresql://nobody:secret@127.0.0.1:1/none",
        tokenizer=tokenizer_path,
        _env_file=None,
    )
    with TestClient(create_app(down), raise_server_exceptions=False) as client:
        monkeypatch.undo()
        assert deps.database is database
        ready = client.get("/readyz")
        assert ready.status_code == 503
        assert not ready.json()["ready"]
        assert client.get("/healthz").status_code == 200
        answer = client.get("/v1/archives")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "database_unavailable")
        assert "secret" not in answer.text


def test_an_archive_of_another_tokenizer_is_refused(settings: Settings, query_path: Path, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(str(settings.tokenizer))
    model.doc_string = "another"
    onnx.save(model, str(tmp_path / "other.onnx"))
    with TestClient(create_app(settings.model_copy(update={"tokenizer": tmp_path / "other.onnx"}))) as client:
        answer = ask(client, query_path.read_bytes())
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "tokenizer_mismatch")


def test_the_openapi_names_every_operation(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    ids = [operation["operationId"] for path in paths.values() for operation in path.values()]
    assert sorted(ids) == [
        "cancel_job", "create_archive", "create_watch", "delete_archive", "delete_recording",
        "delete_recording_by_name", "delete_watch", "describe_recording", "export_hits", "health", "index_folder",
        "list_archives", "list_jobs", "list_recordings", "list_watch_deliveries", "list_watch_hits", "list_watches",
        "metrics", "readiness", "recording_audio", "recording_clip", "recording_peaks", "recording_spectrogram",
        "refine", "search", "search_batch", "show_archive", "show_job", "show_recording", "show_watch",
        "upload_recordings",
    ]  # fmt: skip


def test_no_torch_is_needed_to_serve() -> None:
    import subprocess
    import sys

    code = "import sys, json, service.app, service.cli; print(json.dumps([m for m in sys.modules if m == 'torch']))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(out) == []


@pytest.mark.parametrize("path", ["/", "/page/page.js", "/v1/archives", "/v1/nothing", "/healthz"])
def test_browsers_are_told_to_guess_nothing_and_to_frame_nothing(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert "access-control-allow-origin" not in headers


def test_the_page_loads_nothing_from_elsewhere(client: TestClient) -> None:
    policy = client.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "http" not in policy.replace("'self'", "")
