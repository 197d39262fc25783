"""The command itself in a process of its own, for what a forked one cannot have: other variables, other libraries."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.faults.runs import RUN_S, Order


def command(order: Order, *words: str | Path, **variables: str) -> subprocess.Popen[str]:
    """`sayagain` with an order's data folder, database and tokenizer."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SAYAGAIN_")}
    clean |= {"SAYAGAIN_HOME": str(order.home), "SAYAGAIN_TOKENIZER": str(order.tokenizer), "COLUMNS": "200"}
    clean |= {} if order.url is None else {"SAYAGAIN_DATABASE_URL": order.url}
    return subprocess.Popen(
        [sys.executable, "-m", "service", *map(str, words)],
        env=clean | variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def index(order: Order, **variables: str) -> subprocess.Popen[str]:
    """`sayagain index` for an order."""
    kind = [] if order.codebook is None else ["--codebook", order.codebook]
    return command(order, "index", order.audio, "--archive", order.archive, "--json", *kind, **variables)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code, and what was said on stderr."""
    said = process.communicate(timeout=RUN_S)[1]
    return process.returncode, said
