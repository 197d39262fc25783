"""Hits that somebody has marked: the wrong ones go, what is right rises; and what cannot be read is refused."""

import json
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from tests.service.test_api import ask, is_true, truth

TERM = "visibility"


def mark(hit: dict) -> dict:
    return {"recording": hit["recording"]["id"], "start": hit["start"], "end": hit["end"]}


def refine(client: TestClient, clip: bytes, right: object = (), wrong: object = (), **form: object):
    marks = {"right": right, "wrong": wrong}
    data = {name: value if isinstance(value, str) else json.dumps(list(value)) for name, value in marks.items()}
    return client.post("/v1/search/refine", files={"file": clip}, data={"archive": "demo", **data, **form})


def places(hits: list[dict]) -> list[tuple[int, float]]:
    return [(hit["recording"]["id"], hit["start"]) for hit in hits]


def test_wrong_hits_go_and_right_ones_keep_their_places(client: TestClient, query_path: Path) -> None:
    clip = query_path.read_bytes()
    before = ask(client, clip, limit=20).json()["hits"]
    true = [hit for hit in before if is_true(hit, truth(TERM))]
    false = [hit for hit in before if not is_true(hit, truth(TERM))]
    right, wrong = [mark(true[0]), mark(true[-1])], [mark(hit) for hit in false[:2]]
    after = refine(client, clip, right, wrong, limit=20).json()["hits"]
    assert not set(places(false[:2])) & set(places(after))
    still = [place for place in places(true) if place in places(after)]
    assert len(still) == len(true)
    ranks = {place: rank for rank, place in enumerate(places(after))}
    assert max(ranks[place] for place in still) < len(true)
    # The hardest of the true hits, marked right, is believed more than before.
    score = {place: hit["score"] for place, hit in zip(places(after), after, strict=True)}
    assert score[places(true)[-1]] > true[-1]["score"]
    assert all(0 <= hit["score"] <= 1 for hit in after)


def test_a_stretch_of_a_recording_can_be_refined_too(client: TestClient, query_path: Path) -> None:
    first = ask(client, query_path.read_bytes(), limit=2).json()["hits"]
    form = {"archive": "demo", **mark(first[0]), "right": json.dumps([mark(first[1])])}
    answer = client.post("/v1/search/refine", data=form)
    assert answer.status_code == 200
    assert is_true(answer.json()["hits"][0], truth(TERM))


@pytest.mark.parametrize(
    ("right", "wrong", "status", "code", "field"),
    [
        ("[]", "[]", 422, "invalid_request", "right"),
        ("not json", "[]", 422, "invalid_request", "right"),
        ("[]", "{}", 422, "invalid_request", "wrong"),
        ("[]", '[{"recording": 1}]', 422, "invalid_request", "wrong"),
        ("[]", '[{"recording": 1, "start": -1, "end": 2}]', 422, "invalid_request", "wrong"),
        ('[{"recording": 1, "start": 1, "end": 2, "score": 1}]', "[]", 422, "invalid_request", "right"),
        ('[{"recording": 1, "start": 1, "end": NaN}]', "[]", 422, "invalid_request", "right"),
        (json.dumps([{"recording": 1, "start": 1.0, "end": 2.0}] * 51), "[]", 422, "invalid_request", "right"),
        ('[{"recording": 999999, "start": 1, "end": 2}]', "[]", 404, "recording_not_found", None),
        (f'[{{"recording": {2**63}, "start": 1, "end": 2}}]', "[]", 422, "invalid_request", "right"),
        ('[{"recording": -1, "start": 1, "end": 2}]', "[]", 422, "invalid_request", "right"),
        ("[]", '[{"recording": 1, "start": 2, "end": 1}]', 422, "bad_stretch", "end"),
        ("[]", '[{"recording": 1, "start": 5000, "end": 5001}]', 422, "bad_stretch", "start"),
    ],
)
def test_marks_that_cannot_be_read_are_refused(
    client: TestClient, query_path: Path, right: str, wrong: str, status: int, code: str, field: str | None
) -> None:
    answer = refine(client, query_path.read_bytes(), right, wrong)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error.get("field")) == (status, code, field)
    assert "\n" not in error["message"]
