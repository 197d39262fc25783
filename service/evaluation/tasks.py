"""What is asked and what should be found, and the task file (JSON) that says so.

A task file is {"queries": [{"clip", "term"?, "source": [name, start, end], "exclude": [names],
"relevant": [[name, start, end], ...], "oov"?}]}; clips lie beside it, names are relative to the archive's folder.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.evaluation.errors import TaskError


@dataclass(frozen=True)
class Place:
    """A stretch of a recording in seconds; times are None where only the recording is known."""

    name: str
    start_s: float | None = None
    end_s: float | None = None


@dataclass(frozen=True)
class TaskQuery:
    """A clip, its own source, what may not count, all places that should be found, and what is said in it.

    `source` is the clip itself where nothing else is known of it.
    """

    clip: str
    source: Place
    exclude: frozenset[str]
    relevant: tuple[Place, ...]
    oov: bool
    term: str = ""


def read_task(path: Path) -> list[TaskQuery]:
    """Queries of a task file. Raises TaskError."""
    try:
        task = json.loads(path.read_text(encoding="utf-8"))
        return [
            TaskQuery(
                clip=str(q["clip"]),
                source=(source := _place(q["source"])),
                exclude=frozenset(map(str, q.get("exclude", ()))) | {source.name},
                relevant=tuple(_place(place) for place in q["relevant"]),
                oov=bool(q.get("oov", False)),
                term=str(q.get("term", "")),
            )
            for q in task["queries"]
        ]
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise TaskError(f"{path} is not a task file: {type(error).__name__}: {error}") from error


def _place(parts: list[Any]) -> Place:
    name, *times = parts
    return Place(str(name), *(None if time is None else float(time) for time in times))
