"""Keys: who may ask what, how often, and from when on."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, text

from indexer import database
from service import keys
from service.access import is_loopback
from service.app import create_app
from service.deps import Backend
from service.keys import Scope
from service.rates import RateLimits
from service.settings import Settings
from tests.conftest import database_url
from tests.service.conftest import run_cli

Make = Callable[..., str]


@pytest.fixture
def own(engine: Engine, tokenizer_path: Path, tmp_path: Path) -> Settings:
    """A database of its own, with nothing in it."""
    url = database_url(engine, str(engine.url.database))
    return Settings(home=tmp_path, database_url=url, tokenizer=tokenizer_path, threads=1, _env_file=None)


@pytest.fixture
def client(own: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(own), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def make(engine: Engine) -> Make:
    def create(scope: Scope = Scope.READ, per_minute: int | None = None) -> str:
        with database.connect(engine) as connection, connection.begin():
            return keys.create(connection, f"for {scope.name.lower()}", scope, per_minute)

    return create


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def every_operation(client: TestClient) -> list[tuple[str, str]]:
    """Method and path of all of the interface, as it tells of itself."""
    paths = client.get("/openapi.json").json()["paths"]
    return [
        (method.upper(), re.sub(r"\{.*?\}", "1", path))
        for path, methods in paths.items()
        for method in methods
        if path.startswith("/v1/")
    ]


def test_without_any_key_loopback_is_open_and_other_addresses_are_closed(own: Settings) -> None:
    with TestClient(create_app(own)) as client:
        assert client.get("/v1/archives").json() == {"archives": []}
    with TestClient(create_app(own.model_copy(update={"host": "0.0.0.0"}))) as client:
        answer = client.get("/v1/archives")
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "key_missing")
        assert answer.headers["www-authenticate"] == "Bearer"
        assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200


def test_from_the_first_key_on_nothing_is_open_but_health(client: TestClient, make: Make) -> None:
    operations = every_operation(client)
    assert len(operations) > 12
    key = make(Scope.ADMIN)
    for method, path in operations:
        for headers in ({}, bearer("wrong"), bearer(key + "x"), {"Authorization": f"Basic {key}"}):
            answer = client.request(method, path, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "key_missing"), (method, path)
        assert client.request(method, path, headers=bearer(key)).status_code not in (401, 403)
    assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200


def test_scopes_allow_so_much(client: TestClient, make: Make) -> None:
    made = {scope: make(scope) for scope in Scope}
    needed = {
        ("GET", "/v1/archives"): Scope.READ,
        ("POST", "/v1/search"): Scope.READ,
        ("GET", "/v1/recordings/1/audio"): Scope.READ,
        ("POST", "/v1/archives"): Scope.WRITE,
        ("DELETE", "/v1/recordings/1"): Scope.WRITE,
        ("DELETE", "/v1/recordings?name=a"): Scope.WRITE,
        ("DELETE", "/v1/archives/none"): Scope.ADMIN,
    }
    for (method, path), least in needed.items():
        for scope, key in made.items():
            answer = client.request(method, path, headers=bearer(key))
            refused = answer.status_code == 403 and answer.json()["error"]["code"] == "key_forbidden"
            assert refused == (scope < least), (method, path, scope)


def test_a_revoked_key_opens_nothing_at_once_and_leaves_the_door_shut(
    client: TestClient, make: Make, engine: Engine
) -> None:
    key = make()
    assert client.get("/v1/archives", headers=bearer(key)).status_code == 200
    with database.connect(engine) as connection, connection.begin():
        (about,) = keys.list_keys(connection)
        keys.revoke(connection, about.id)
    assert client.get("/v1/archives", headers=bearer(key)).status_code == 401
    assert client.get("/v1/archives").status_code == 401


def test_a_limit_holds_and_says_when_to_come_again(client: TestClient, make: Make) -> None:
    now = [1_000.0]
    client.app.state.backend.rates = RateLimits(lambda: now[0])  # type: ignore[attr-defined]
    slow, other = make(Scope.WRITE, 3), make()
    url = "/v1/archives"
    answers = []
    for _ in range(3):
        answers.append(client.delete("/v1/recordings/1", headers=bearer(slow)).status_code)  # two scopes, one use
        now[0] += 10.0
    assert answers == [404, 404, 404]
    answer = client.get(url, headers=bearer(slow))
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "too_many_requests")
    assert answer.headers["retry-after"] == "30"
    assert client.get(url, headers=bearer(other)).status_code == 200
    now[0] += 30.5
    assert client.get(url, headers=bearer(slow)).status_code == 200
    assert client.get(url, headers=bearer(slow)).status_code == 429


def test_the_text_of_a_key_is_nowhere(make: Make, engine: Engine) -> None:
    made = {make() for _ in range(20)}
    assert len(made) == 20
    with engine.connect() as connection:
        stored = str(connection.execute(text("SELECT * FROM api_key")).all())
    assert not any(key in stored or key.removeprefix(keys.PREFIX) in stored for key in made)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False),
        ("::", False), ("192.168.1.2", False), ("example.org", False), ("", False),
    ],
)  # fmt: skip
def test_what_is_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected


def test_keys_on_the_command_line(tmp_path: Path, tokenizer_path: Path, engine: Engine) -> None:
    url = database_url(engine, str(engine.url.database))

    def run(*words: str):
        return run_cli(tmp_path, tokenizer_path, "keys", *words, SAYAGAIN_DATABASE_URL=url)

    made = run("create", "the page", "--scope", "write", "--per-minute", "60")
    key = made.stdout.strip()
    assert key.startswith(keys.PREFIX)
    assert "shown once" in made.stderr
    (listed,) = [json.loads(line) for line in run("list", "--json").stdout.splitlines()]
    assert (listed["name"], listed["scope"], listed["per_minute"], listed["revoked_at"]) == (
        "the page",
        "write",
        60,
        None,
    )
    assert key not in run("list").stdout
    settings = Settings(home=tmp_path, database_url=url, tokenizer=tokenizer_path, threads=1, _env_file=None)
    backend = Backend.open(settings)
    with backend.connect() as connection:
        found = keys.find(connection, key)
        assert found is not None
        assert found.scope is Scope.WRITE
        connection.rollback()
        assert run("revoke", str(listed["id"])).returncode == 0
        assert keys.find(connection, key) is None
    backend.close()
    again = run("revoke", str(listed["id"]))
    assert (again.returncode, "key_not_found" in again.stderr) == (1, True)
    assert run("create", " ").returncode == 1
    assert run("create", "a", "--scope", "root").returncode == 2
