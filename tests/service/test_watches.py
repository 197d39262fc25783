"""Watches: new recordings are searched by stored queries, and webhooks are told of what is found."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from indexer import store
from service.app import create_app
from service.deps import Backend
from service.settings import Settings
from service.watches import watches, webhooks
from tests.service.conftest import DEMO
from tests.service.test_jobs import ended, listed, send

STATION = DEMO / "archive" / "skerry-radio"
LATER = ("04-thursday.opus", "05-friday.opus", "10-late-night.opus")  # the term is said in the first and the last
NAMES = sorted(path.name for path in STATION.iterdir() if path.name not in LATER)


@dataclass
class Receiver:
    """A web server that keeps what it is told, and answers with the next of `answers`, 204 after those."""

    url: str
    told: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            kept.told.append(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(kept.answers.pop(0) if kept.answers else 204)
            self.send_header("Location", kept.url + "/elsewhere")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    kept = Receiver(f"http://127.0.0.1:{server.server_port}/hook?a=b")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield kept
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def own(tokenizer_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A service that does jobs and watches, and may post to this machine."""
    settings = Settings(
        home=tmp_path_factory.mktemp("home"), database_url=None, tokenizer=tokenizer_path, threads=1,
        webhook_private=True, refit_hours=0, _env_file=None,
    )  # fmt: skip
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def archive(own: TestClient) -> Iterator[str]:
    """An archive of all recordings but `LATER`, and of some more, so that it has a codebook of its own."""
    more = [(path.name, path.read_bytes()) for path in sorted((DEMO / "archive" / "field-notes").iterdir())]
    assert (
        ended(own, send(own, "air", *more, *((n, (STATION / n).read_bytes()) for n in NAMES)).json())["state"] == "done"
    )
    assert own.get("/v1/archives/air").json()["codebook"] == "archive"
    yield "air"
    own.delete("/v1/archives/air")


def put(own: TestClient, *names: str, **form: Any) -> dict[str, Any]:
    answer = send(own, "air", *((name, (STATION / name).read_bytes()) for name in names), **form)
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


def watch(own: TestClient, clip: bytes | None, **form: Any) -> Any:
    files = None if clip is None else {"file": ("clip", clip)}
    return own.post("/v1/watches", files=files, data={"archive": "air", "name": "visibility", **form})


def until(ready: Callable[[], Any], wait_s: float = 60.0) -> Any:
    deadline = time.monotonic() + wait_s
    while not (found := ready()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def seen(own: TestClient, number: int) -> bool:
    """Whether a watch has searched all that its archive has."""
    backend: Backend = own.app.state.backend  # type: ignore[attr-defined]
    with backend.connect() as connection:
        row = connection.execute(
            text("""
                SELECT seen_revision = revision FROM watch JOIN archive ON archive.id = archive_id WHERE watch.id = :id
            """),
            {"id": number},
        ).one()  # fmt: skip
        return bool(row[0])


def places(hits: list[dict[str, Any]]) -> set[tuple[str, float]]:
    return {(hit["recording"]["name"], round(hit["start"], 1)) for hit in hits}


def test_what_comes_later_is_searched_and_told(
    own: TestClient, archive: str, query_path: Path, receiver: Receiver
) -> None:
    made = watch(own, query_path.read_bytes(), webhook=receiver.url, min_score=0.1)
    assert made.status_code == 201
    number, secret = made.json()["id"], made.json()["secret"]
    assert own.get("/v1/watches", params={"archive": archive}).json()["watches"] == [
        {key: value for key, value in made.json().items() if key != "secret"}
    ]
    assert ended(own, put(own, *LATER))["state"] == "done"
    until(lambda: seen(own, number))
    hits = own.get(f"/v1/watches/{number}/hits").json()["hits"]
    # As a search would have found it, in what is new alone.
    form = {"archive": archive, "limit": 1_000, "min_score": 0.1}
    answer = own.post("/v1/search", files={"file": query_path.read_bytes()}, data=form).json()
    later = [hit for hit in answer["hits"] if hit["recording"]["name"] in LATER]
    assert later
    assert len(later) < len(answer["hits"])
    assert {name for name, _ in places(hits)} == {name for name, _ in places(later)}
    assert own.get(f"/v1/watches/{number}").json()["hits"] == len(hits)
    told = until(lambda: receiver.told and own.get(f"/v1/watches/{number}/deliveries").json()["deliveries"])
    until(
        lambda: all(d["state"] == "delivered" for d in own.get(f"/v1/watches/{number}/deliveries").json()["deliveries"])
    )
    assert all(delivery["problem"] is None for delivery in told)
    said: set[tuple[str, float]] = set()
    for headers, body in receiver.told:
        message = json.loads(body)
        assert (message["type"], message["watch"], message["archive"]) == (
            "watch.hits", {"id": number, "name": "visibility"}, archive,
        )  # fmt: skip
        said |= places(message["hits"])
        # By the rules of Standard Webhooks, checked by hand.
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        key = base64.b64decode(secret.removeprefix("whsec_"))
        expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
        assert headers["webhook-signature"] == f"v1,{expected}"
        assert abs(int(headers["webhook-timestamp"]) - time.time()) < 120
    assert said == places(hits)
    assert own.delete(f"/v1/watches/{number}").status_code == 204
    for path in ("", "/hits", "/deliveries"):
        gone = own.get(f"/v1/watches/{number}{path}")
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "watch_not_found")


def test_a_stretch_of_a_recording_is_watched_for(own: TestClient, archive: str) -> None:
    number = listed(own, archive)[NAMES[1]]["id"]
    made = watch(own, None, recording=number, start=2.0, end=3.2, min_score=0.2).json()
    assert made["secret"] is None
    # The same sound under another name: the stretch is there again.
    ended(own, send(own, archive, ("copy.opus", (STATION / NAMES[1]).read_bytes())).json())
    until(lambda: seen(own, made["id"]))
    hits = own.get(f"/v1/watches/{made['id']}/hits").json()["hits"]
    assert hits
    assert hits[0]["recording"]["name"] == "copy.opus"
    assert any(abs(hit["start"] - 2.0) < 0.3 for hit in hits)


def test_a_replaced_recording_is_searched_anew(own: TestClient, archive: str, query_path: Path) -> None:
    number = watch(own, query_path.read_bytes(), min_score=0.1).json()["id"]
    ended(own, put(own, *LATER))
    until(lambda: seen(own, number))
    hits = own.get(f"/v1/watches/{number}/hits").json()["hits"]
    name = hits[0]["recording"]["name"]
    page = own.get(f"/v1/watches/{number}/hits", params={"limit": 1}).json()
    assert [hit["id"] for hit in page["hits"]] == [hits[0]["id"]]
    rest = own.get(f"/v1/watches/{number}/hits", params={"before": page["next_before"]}).json()
    assert [hit["id"] for hit in rest["hits"]] == [hit["id"] for hit in hits[1:]]
    other = DEMO / "archive" / "kurzwelle" / "02-markt.opus"
    about = json.dumps([{"name": name}])
    ended(own, send(own, archive, ("x.opus", other.read_bytes()), about=about, replace="true").json())
    until(lambda: seen(own, number))
    again = own.get(f"/v1/watches/{number}/hits").json()["hits"]
    assert places(again) - places([hit for hit in hits if hit["recording"]["name"] == name]) == places(again)
    # And what is deleted takes its hits along.
    own.delete("/v1/recordings", params={"archive": archive, "name": hits[-1]["recording"]["name"]})
    left = own.get(f"/v1/watches/{number}/hits").json()["hits"]
    assert hits[-1]["recording"]["name"] not in {hit["recording"]["name"] for hit in left}


def test_a_webhook_that_fails_is_told_again(
    own: TestClient, archive: str, query_path: Path, receiver: Receiver
) -> None:
    receiver.answers[:] = [500, 302]  # a redirect is no answer, and is not followed
    number = watch(own, query_path.read_bytes(), webhook=receiver.url, min_score=0.0).json()["id"]
    ended(own, put(own, LATER[0]))

    def delivery() -> dict[str, Any]:
        told = own.get(f"/v1/watches/{number}/deliveries").json()["deliveries"]
        return dict(told[0]) if told else {"attempts": 0}

    first = until(lambda: delivery() if delivery()["attempts"] == 1 else None)
    assert (first["state"], first["problem"]) == ("waiting", "the answer was 500")
    backend: Backend = own.app.state.backend  # type: ignore[attr-defined]
    for attempts, state, problem in ((2, "waiting", "the answer was 302"), (3, "delivered", None)):
        with backend.connect() as connection:
            connection.execute(text("UPDATE delivery SET next_at = now()"))
            connection.commit()
        now = until(lambda wanted=attempts: delivery() if delivery()["attempts"] == wanted else None)
        assert (now["state"], now["problem"]) == (state, problem)
    assert len(receiver.told) == 3
    assert len({headers["webhook-id"] for headers, _ in receiver.told}) == 1
    assert len({body for _, body in receiver.told}) == 1


def test_a_webhook_is_given_up_in_the_end(own: TestClient, archive: str, query_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/"
    number = watch(own, query_path.read_bytes(), webhook=url, min_score=0.0).json()["id"]
    ended(own, put(own, LATER[0]))
    backend: Backend = own.app.state.backend  # type: ignore[attr-defined]
    state: dict[str, Any] = {}
    for attempt in range(1, len(webhooks.WAITS_S) + 2):

        def tried(wanted: int = attempt) -> bool:
            told = own.get(f"/v1/watches/{number}/deliveries").json()["deliveries"]
            state.update(told[0] if told else {})
            return bool(told) and told[0]["attempts"] == wanted

        until(tried)
        with backend.connect() as connection:
            connection.execute(text("UPDATE delivery SET next_at = now()"))
            connection.commit()
    assert (state["state"], state["next_at"]) == ("failed", None)
    assert "ConnectError" in state["problem"]


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/", "http://localhost:80/", "http://[::1]/", "http://10.0.0.1/", "http://192.168.1.1/x",
        "http://169.254.169.254/latest/meta-data/", "http://0.0.0.0/", "http://[::ffff:127.0.0.1]/",
        "http://[64:ff9b::7f00:1]/", "http://[2002:7f00:1::]/", "http://2130706433/", "http://0x7f.1/",
        "http://100.64.0.1/", "http://224.0.0.1/", "http://[fe80::1]/", "http://[fc00::1]/",
    ],
)  # fmt: skip
def test_webhooks_do_not_reach_private_addresses(url: str) -> None:
    problem = webhooks.post(url, b"secret", "msg_1", b"{}", private=False)
    assert problem is not None
    assert problem.startswith(("WebhookForbidden", "gaierror")), problem


def test_a_name_that_stands_for_a_private_address_is_not_posted_to(receiver: Receiver) -> None:
    url = receiver.url.replace("127.0.0.1", "localhost")
    webhooks.check_url(url, private=False)  # names are looked up when it is posted
    problem = webhooks.post(url, b"secret", "msg_1", b"{}", private=False)
    assert problem is not None
    assert problem.startswith("WebhookForbidden")
    assert receiver.told == []
    assert webhooks.post(url, b"secret", "msg_1", b"{}", private=True) is None
    ((headers, _),) = receiver.told
    assert headers["host"] == url.split("/")[2]  # the name, though it is an address that was spoken to


@pytest.mark.parametrize(
    "url",
    ["x", "ftp://example.org/", "http://", "http:///x", "http://u:p@example.org/", "http://example.org:99999/",
     "http://exämple.org/", "http://a b/", "http://10.0.0.1/", "javascript:alert(1)",
     "http://example.org/" + "x" * 2_000],
)  # fmt: skip
def test_webhooks_that_are_none(client: TestClient, query_path: Path, url: str) -> None:
    form = {"archive": "demo", "name": "w", "webhook": url}
    answer = client.post("/v1/watches", files={"file": query_path.read_bytes()}, data=form)
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] in ("webhook_forbidden", "invalid_request")
    assert client.get("/v1/watches").json()["watches"] == []


def test_watches_that_cannot_be_made(client: TestClient, query_path: Path) -> None:
    def made(clip: bytes | None, **form: Any) -> tuple[int, str]:
        files = None if clip is None else {"file": clip}
        answer = client.post("/v1/watches", files=files, data={"archive": "demo", "name": "w", **form})
        return answer.status_code, answer.json().get("error", {}).get("code", "made")

    clip = query_path.read_bytes()
    assert made(clip, archive="nothing") == (404, "archive_not_found")
    assert made(clip, name="") == (422, "invalid_request")
    assert made(None) == (422, "invalid_request")
    assert made(b"no sound") == (400, "audio_undecodable")
    assert made(None, recording=10**9, start=1, end=2) == (404, "recording_not_found")
    assert made(clip, min_score=1.5) == (422, "invalid_request")
    assert made(clip) == (201, "made")
    assert made(clip) == (409, "watch_name_taken")
    for one in client.get("/v1/watches").json()["watches"]:
        assert client.delete(f"/v1/watches/{one['id']}").status_code == 204


def test_a_watch_that_cannot_search_keeps_no_other_waiting(own: TestClient, archive: str, query_path: Path) -> None:
    backend: Backend = own.app.state.backend  # type: ignore[attr-defined]
    first = watch(own, query_path.read_bytes(), min_score=0.1).json()["id"]
    with backend.connect() as connection:
        # An archive of a tokenizer that is not at hand, with a watch that is farther behind.
        connection.execute(text("""
            WITH made AS (INSERT INTO tokenizer (sha256, name, version, frame_seconds, dim)
                VALUES ('x', 'x', '1', 0.04, 4) RETURNING id)
            INSERT INTO archive (name, tokenizer_id, revision) SELECT 'lost', id, 9 FROM made
        """))  # fmt: skip
        about = store.get_archive(connection, "lost")
        examples = watches.examples_of(connection, first)
        lost, _ = watches.add(connection, about, "lost", examples, 0.5, None)
        connection.execute(text("""
            UPDATE watch SET seen_revision = 0 WHERE id = :id
        """), {"id": lost})  # fmt: skip
        connection.execute(text("""
            INSERT INTO recording (archive_id, name, path, bytes, mtime_ns, content_sha256, duration_s, segments,
                codebook_id, revision)
            SELECT :lost, name, path, bytes, mtime_ns, content_sha256, duration_s, 0, codebook_id, 9
            FROM recording LIMIT 1
        """), {"lost": about.id})  # fmt: skip
        connection.commit()
    try:
        ended(own, put(own, *LATER))
        until(lambda: seen(own, first))
        assert own.get(f"/v1/watches/{first}/hits").json()["hits"]
        assert not seen(own, lost)
    finally:
        with backend.connect() as connection:
            connection.execute(text("DELETE FROM archive WHERE name = 'lost'"))
            connection.commit()
