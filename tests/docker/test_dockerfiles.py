"""The Dockerfiles by hadolint's rules, and by ours."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FILES = {"cpu": ROOT / "docker" / "Dockerfile", "gpu": ROOT / "docker" / "Dockerfile.gpu"}


def instructions(extra: str) -> list[tuple[str, str]]:
    """Instructions in order, with their arguments; continued lines joined, comments left out."""
    text = "\n".join(line for line in FILES[extra].read_text().splitlines() if not line.startswith("#"))
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def only(extra: str, name: str) -> str:
    """The argument of the one instruction called `name`."""
    (argument,) = [argument for word, argument in instructions(extra) if word == name]
    return argument


@pytest.mark.parametrize("extra", FILES)
def test_hadolint_has_nothing_to_say(extra: str) -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    run = subprocess.run([hadolint, "--no-color", FILES[extra]], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout + run.stderr) == (0, "")


@pytest.mark.parametrize("extra", FILES)
def test_it_runs_as_a_fixed_user_who_is_not_root(extra: str) -> None:
    words = [word for word, _ in instructions(extra)]
    assert only(extra, "USER") == "10001:10001"
    assert words.index("USER") > max(at for at, word in enumerate(words) if word == "RUN")
    assert any("useradd --uid 10001" in argument for word, argument in instructions(extra) if word == "RUN")


@pytest.mark.parametrize("extra", FILES)
def test_it_answers_on_its_port_and_looks_after_its_health(extra: str) -> None:
    assert json.loads(only(extra, "ENTRYPOINT")) == ["sayagain"]
    command = json.loads(only(extra, "CMD"))
    assert command[:3] == ["serve", "--host", "0.0.0.0"]
    assert command[-1] == only(extra, "EXPOSE") == "8000"
    check = json.loads(only(extra, "HEALTHCHECK").split(" CMD ", 1)[1])
    assert check[0] == "python"
    assert "127.0.0.1:8000/healthz" in check[2]


@pytest.mark.parametrize("extra", FILES)
def test_its_data_are_in_a_volume(extra: str) -> None:
    assert only(extra, "VOLUME") == "/data"
    assert "SAYAGAIN_HOME=/data" in " ".join(argument for word, argument in instructions(extra) if word == "ENV")


@pytest.mark.parametrize("extra", FILES)
def test_the_wheel_is_installed_with_its_extra_alone_and_torch_is_not(extra: str) -> None:
    runs = " ".join(argument for word, argument in instructions(extra) if word == "RUN")
    assert f'"$1[{extra}]"' in runs
    assert "torch" not in runs
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"][extra]]
    assert not [name for name in asked if name.startswith("torch")]


@pytest.mark.parametrize("extra", FILES)
def test_base_images_have_a_tag_and_everything_that_is_copied_is_in_the_context(extra: str) -> None:
    for word, argument in instructions(extra):
        if word == "FROM":
            assert re.fullmatch(r"[a-z/]+:\d[\w.-]+( AS \w+)?", argument), argument
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [argument.split()[:-1] for word, argument in instructions(extra) if word == "COPY"]
    assert sorted(name for names in copied for name in names) == sorted(allowed)
    for name in allowed:
        assert (ROOT / name).exists(), name
