"""compose.yaml, by `docker compose config` where there is a client, and by our rules in any case."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

FILE = Path(__file__).parent.parent.parent / "docker" / "compose.yaml"


def has_compose() -> bool:
    """Whether the docker client is here and knows `compose`."""
    docker = shutil.which("docker")
    return docker is not None and not subprocess.run([docker, "compose", "version"], capture_output=True).returncode


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return dict(yaml.safe_load(FILE.read_text()))


@pytest.mark.skipif(not has_compose(), reason="no docker client with compose")
def test_the_client_accepts_it() -> None:
    command = ["docker", "compose", "-f", str(FILE), "--profile", "indexer", "config", "--quiet"]
    without = {name: value for name, value in os.environ.items() if name != "POSTGRES_PASSWORD"}
    subprocess.run(command, check=True, env=without | {"POSTGRES_PASSWORD": "x1"})
    refused = subprocess.run(command, check=False, env=without, capture_output=True, text=True)
    assert refused.returncode != 0
    assert "POSTGRES_PASSWORD" in refused.stderr


def test_there_is_no_default_password(compose: dict[str, Any]) -> None:
    said = re.findall(r"\$\{POSTGRES_PASSWORD[^}]*\}", FILE.read_text())
    assert len(said) == 2
    assert all(variable.startswith("${POSTGRES_PASSWORD:?") for variable in said)
    assert compose["services"]["db"]["environment"]["POSTGRES_PASSWORD"].startswith("${POSTGRES_PASSWORD:?")


def test_the_service_and_the_indexer_wait_for_database_and_schema(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert services["migrate"]["command"] == ["migrate"]
    assert services["migrate"]["restart"] == "no"
    assert services["migrate"]["depends_on"] == {"db": {"condition": "service_healthy"}}
    for name in ("service", "indexer"):
        assert services[name]["depends_on"] == {
            "db": {"condition": "service_healthy"},
            "migrate": {"condition": "service_completed_successfully"},
        }
    assert services["db"]["healthcheck"]["test"][1] == "pg_isready"
    assert "/healthz" in services["service"]["healthcheck"]["test"][-1]


def test_all_of_ours_are_one_image_and_one_database_without_privileges(compose: dict[str, Any]) -> None:
    services = compose["services"]
    url = services["service"]["environment"]["SAYAGAIN_DATABASE_URL"]
    assert re.fullmatch(r"postgresql://sayagain:\$\{POSTGRES_PASSWORD:\?[^}]+\}@db:5432/sayagain", url)
    for name in ("migrate", "service", "indexer"):
        assert services[name]["image"] == services["service"]["image"]
        assert services[name]["environment"]["SAYAGAIN_DATABASE_URL"] == url
        assert services[name]["cap_drop"] == ["ALL"]
        build = services[name]["build"]
        assert (FILE.parent / build["context"] / build["dockerfile"]).resolve() == FILE.parent / "Dockerfile"


def test_only_the_service_can_be_reached_and_only_from_this_machine(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert [name for name in services if "ports" in services[name]] == ["service"]
    assert services["service"]["ports"] == ["${SAYAGAIN_BIND:-127.0.0.1}:${SAYAGAIN_PORT:-8000}:8000"]


def test_the_service_has_the_recordings_where_the_indexer_had_them(compose: dict[str, Any]) -> None:
    mounts = [
        next(volume for volume in compose["services"][name]["volumes"] if isinstance(volume, dict))
        for name in ("service", "indexer")
    ]
    assert [(mount["source"], mount["target"], mount["read_only"]) for mount in mounts] == [
        ("${AUDIO_DIR:-./audio}", "/audio", True)
    ] * 2


def test_the_indexer_is_a_profile_that_reads_a_folder_and_cannot_write_it(compose: dict[str, Any]) -> None:
    indexer = compose["services"]["indexer"]
    assert indexer["profiles"] == ["indexer"]
    (mount,) = indexer["volumes"]
    assert mount["source"].startswith("${AUDIO_DIR")
    assert mount["read_only"] is True
    assert indexer["command"][:2] == ["index", mount["target"]]


def test_what_must_last_is_in_named_volumes(compose: dict[str, Any]) -> None:
    assert set(compose["volumes"]) == {"database", "home"}
    assert compose["services"]["db"]["volumes"] == ["database:/var/lib/postgresql/data"]
    assert compose["services"]["service"]["volumes"][0] == "home:/data"
