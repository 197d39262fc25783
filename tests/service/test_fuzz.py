"""Requests that nobody would make, by schemathesis from the service's own OpenAPI document: none ends in a 500."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from service import keys
from service.app import create_app
from service.client import Client
from service.deps import open_database
from service.keys import Scope
from service.settings import Settings
from tests.service.conftest import DEMO, serving

EXAMPLES = 25  # of each operation
CHECKS = (not_a_server_error, status_code_conformance, response_schema_conformance)
QUICK = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)


@pytest.fixture(scope="module")
def own(tokenizer_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(
        home=tmp_path_factory.mktemp("home"), database_url=None, tokenizer=tokenizer_path, threads=1,
        roots=[tmp_path_factory.mktemp("root")], _env_file=None,
    )  # fmt: skip


@pytest.fixture(scope="module")
def url(own: Settings) -> Iterator[str]:
    """A service with a recording in its default archive, which nobody will miss."""
    with serving(own) as url, Client(url) as client:
        client.wait(client.upload([DEMO / "archive" / "skerry-radio" / "01-monday.opus"]))
        yield url


def operations() -> list[str]:
    """Ids of all operations, which do not depend on any setting."""
    paths = create_app(Settings(_env_file=None)).openapi()["paths"]
    return [operation["operationId"] for path in paths.values() for operation in path.values()]


@pytest.fixture(scope="module")
def cases(url: str) -> Callable[[str], SearchStrategy[schemathesis.Case]]:
    """What may be sent to an operation, and what may not."""
    document = schemathesis.openapi.from_url(f"{url}/openapi.json")
    by_id = {found.ok().definition.raw["operationId"]: found.ok() for found in document.get_all_operations()}
    return lambda operation: st.one_of(
        *(by_id[operation].as_strategy(generation_mode=mode) for mode in schemathesis.GenerationMode)
    )


@pytest.mark.parametrize("operation", operations())
def test_no_request_breaks_the_service(
    operation: str, cases: Callable[[str], SearchStrategy[schemathesis.Case]]
) -> None:
    @QUICK
    @given(cases(operation))
    def ask(case: schemathesis.Case) -> None:
        case.call_and_validate(checks=CHECKS)

    ask()


@pytest.fixture(scope="module")
def locked(own: Settings, url: str) -> Iterator[str]:
    """A key that reads, after which nobody else may do anything."""
    engine = open_database(own)
    with engine.begin() as connection:
        key = keys.create(connection, "fuzz", Scope.READ)
    yield key
    with engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM api_key")
    engine.dispose()


@pytest.mark.parametrize("operation", operations())
def test_no_request_with_a_key_that_reads_changes_anything(
    operation: str, cases: Callable[[str], SearchStrategy[schemathesis.Case]], locked: str, url: str
) -> None:
    def status(case: schemathesis.Case, key: str) -> int:
        sent = case.as_transport_kwargs(base_url=url)
        sent["headers"] = {**sent["headers"], "Authorization": f"Bearer {key}"}
        return requests.request(**sent, timeout=30).status_code

    @QUICK
    @given(cases(operation))
    def ask(case: schemathesis.Case) -> None:
        allowed = status(case, locked)
        assert allowed < 500
        if case.method not in ("GET", "HEAD") and not case.path.startswith(("/v1/search", "/v1/exports")):
            assert allowed == 403
        refused = status(case, "nothing")
        assert (refused == 401) == (case.path.startswith("/v1") or case.path == "/metrics")

    ask()
