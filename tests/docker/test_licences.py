"""Every package that pyproject.toml asks for stands in docs/licences.md, with a licence."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIREMENTS = [
    *PROJECT["dependencies"],
    *(name for group in PROJECT["optional-dependencies"].values() for name in group),
]


def name_of(requirement: str) -> str:
    """`dask[distributed]>=2024.8` to `dask`, spelt the one way."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None
    return re.sub(r"[-_.]+", "-", found[0]).lower()


@pytest.mark.parametrize("name", sorted({name_of(requirement) for requirement in REQUIREMENTS}))
def test_its_licence_is_stated(name: str) -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (ROOT / "docs" / "licences.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("|")
    ]
    licences = {
        re.sub(r"[-_.]+", "-", package.split("(")[0].strip()).lower(): cells[2]
        for cells in rows
        if len(cells) >= 3
        for package in cells[0].split(",")
    }
    assert re.search(r"MIT|BSD|Apache|LGPL|MPL|GPL", licences[name]), name


def test_the_licence_is_apache_2_in_full() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["license"] == "Apache-2.0"
