"""Running a development task against an indexed archive."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from indexer import store
from service.clips import read_clip
from service.deps import Backend
from service.errors import CLIP_ERRORS
from service.evaluation.figures import Figures, figures
from service.evaluation.judging import Ranked
from service.evaluation.tasks import TaskQuery, read_task
from service.search.engine import Answer, Request

LIMIT = 1_000  # hits asked for per query


@dataclass(frozen=True)
class TaskResult:
    """Figures by level and group, the median milliseconds of each stage, and how many clips could not be searched."""

    figures: dict[str, Figures]
    median_ms: dict[str, float]
    failed: int

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        rounded = {
            name: {key: round(value, 4) if isinstance(value, float) else value for key, value in asdict(f).items()}
            for name, f in self.figures.items()
        }
        return {"figures": rounded, "median_ms": self.median_ms, "failed": self.failed}


def run(
    backend: Backend, task_path: Path, archive: str, context_folder: Path | None, exact: bool, console: Console
) -> TaskResult:
    """Search every query of a task; a clip that cannot be searched counts as answered with nothing.

    Recordings that a query leaves out are left out of its search: they must not help to find the others. With
    `context_folder`, the query is the stretch of its source recording there, heard in its context.
    """
    queries = read_task(task_path)
    answers: dict[str, list[Ranked]] = {}
    stages: list[Answer] = []
    with backend.connect() as connection:
        about = store.get_archive(connection, archive)
    failed = 0
    for query in track(queries, "search", console=console):
        try:
            answer = backend.search.search(_request(query, task_path, archive, context_folder, exact, backend))
        except CLIP_ERRORS:
            failed += 1
            continue
        stages.append(answer)
        answers[query.clip] = [Ranked(h.recording.name, h.start_s, h.end_s, h.score) for h in answer.hits]
    median = {
        name: round(float(np.median([getattr(a.timing_ms, name) for a in stages])), 2)
        for name in ("tokenize", "candidates", "alignment", "rescoring", "total")
    }
    return TaskResult(figures(queries, answers, about.recordings, about.hours * 3600.0), median, failed)


def _request(
    query: TaskQuery, task_path: Path, archive: str, context_folder: Path | None, exact: bool, backend: Backend
) -> Request:
    longest_s = backend.settings.max_query_s
    if context_folder is None:
        clip = read_clip(task_path.parent / query.clip, longest_s)
    else:
        clip = read_clip(context_folder / query.source.name, longest_s, query.source.start_s, query.source.end_s)
    return Request([clip], archive, LIMIT, exact=exact, exclude=frozenset(query.exclude))
