"""`sayagain config`: values, where they come from, secrets, and names that are no settings."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.settings import Settings


def config(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """One run in a folder of its own, which may have an .env file."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("SAYAGAIN_")}
    return subprocess.run(
        [sys.executable, "-m", "service", "config", *words],
        env={**clean, "COLUMNS": "200", "PYTHONPATH": str(Path(__file__).parents[2]), **environment},
        cwd=folder, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def settings(folder: Path, **environment: str) -> dict[str, dict]:
    done = config(folder, "--json", **environment)
    assert (done.returncode, done.stderr) == (0, "")
    return {setting.pop("name"): setting for setting in json.loads(done.stdout)["settings"]}


def test_each_setting_has_its_value_and_where_it_comes_from(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("SAYAGAIN_THREADS=3\nSAYAGAIN_HOST=::1\nOTHER=1\n")
    found = settings(tmp_path, SAYAGAIN_HOST="localhost", sayagain_deep_hits="7", SAYAGAIN_ROOTS='["/a", "/b"]')
    assert list(found) == list(Settings.model_fields)
    assert all(setting["description"] for setting in found.values())
    told = {name: (found[name]["value"], found[name]["source"]) for name in found}
    assert told["threads"] == (3, ".env")
    assert told["host"] == ("localhost", "environment")
    assert told["deep_hits"] == (7, "environment")
    assert told["roots"] == (["/a", "/b"], "environment")
    assert told["max_clips"] == (10, "default")
    assert told["database_url"] == (None, "default")
    assert found["max_clips"]["variable"] == "SAYAGAIN_MAX_CLIPS"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:hunter2@db.example:5433/speech", "postgresql://me:***@db.example:5433/speech"),
        ("postgresql://db/speech?user=me&password=hunter2", "postgresql://db/speech?password=***&user=me"),
        ("postgresql://db/speech", "postgresql://db/speech"),
        ("hunter2", "***"),
    ],
)
def test_of_the_database_only_the_password_is_hidden(tmp_path: Path, url: str, shown: str) -> None:
    assert settings(tmp_path, SAYAGAIN_DATABASE_URL=url)["database_url"]["value"] == shown
    assert "hunter2" not in config(tmp_path, SAYAGAIN_DATABASE_URL=url).stdout


def test_names_that_are_no_settings_are_pointed_out(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("SAYAGAIN_THRADS=3\n")
    done = config(tmp_path, SAYAGAIN_DATABSE_URL="postgresql://me:hunter2@db/speech", SAYAGAIN_XYZZYQ="1")
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        "sayagain: SAYAGAIN_DATABSE_URL is no setting; did you mean SAYAGAIN_DATABASE_URL?",
        "sayagain: SAYAGAIN_THRADS is no setting; did you mean SAYAGAIN_THREADS?",
        "sayagain: SAYAGAIN_XYZZYQ is no setting",
    ]
    assert "SAYAGAIN_DATABASE_URL" in done.stdout
    assert "hunter2" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"SAYAGAIN_THREADS": "hunter2", "SAYAGAIN_DEVICE": "tpu"}, ["SAYAGAIN_THREADS: ", "SAYAGAIN_DEVICE: "]),
        ({"SAYAGAIN_ROOTS": "hunter2"}, ["roots"]),
    ],
)
def test_a_value_that_cannot_be_is_one_line(tmp_path: Path, environment: dict[str, str], says: list[str]) -> None:
    done = config(tmp_path, **environment)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("sayagain: settings_invalid: ")
    assert all(part in line for part in says)
    assert "hunter2" not in line
