"""Running a task, or a query list with its references, against an indexed archive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from indexer import store
from indexer.recordings import list_recordings
from service.clips import read_clip
from service.deps import Backend
from service.errors import CLIP_ERRORS, code_of, message_of
from service.evaluation.detections import Answered
from service.evaluation.errors import TaskError
from service.evaluation.figures import Figures, Level, figures_of, levels
from service.evaluation.judging import Ranked, verdicts
from service.evaluation.names import RecordingNames
from service.evaluation.querylist import read_queries
from service.evaluation.references import read_references
from service.evaluation.report import Report, curves_json
from service.evaluation.tasks import TaskQuery, read_task
from service.search.answer import STAGES, Answer, Request

LIMIT = 1_000  # hits asked for per query


@dataclass(frozen=True)
class Questions:
    """Queries for an archive, the file they are from (clips lie beside it), and the archive's recordings."""

    queries: Sequence[TaskQuery]
    path: Path
    archive: store.ArchiveInfo
    names: RecordingNames


@dataclass(frozen=True)
class TaskResult:
    """Figures by level and group, the median milliseconds of each stage, and how many clips could not be searched."""

    figures: dict[str, Figures]
    median_ms: dict[str, float]
    failed: int
    levels: dict[str, Level]
    answers: tuple[Answered, ...]

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        rounded = {
            name: {key: round(value, 4) if isinstance(value, float) else value for key, value in asdict(f).items()}
            for name, f in self.figures.items()
        }
        return {
            "figures": rounded,
            "median_ms": self.median_ms,
            "failed": self.failed,
            "curves": curves_json(self.levels),
        }

    def report(self, report: Report, questions: Questions) -> None:
        """Write everything down. Raises ReportError."""
        title = f"{questions.path.name}, archive {questions.archive.name}"
        report.write(self.as_json(), self.levels, self.answers, questions.names, title)


def read_questions(
    backend: Backend, path: Path, archive: str, references: Path | None, console: Console | None = None
) -> Questions:
    """A task file, or with `references` (CTM or RTTM) a query list.

    Raises TaskError, QueryListError, ReferencesError, ArchiveNotFound.
    """
    with backend.connect() as connection:
        about = store.get_archive(connection, archive)
        recordings = list_recordings(connection, about.id, max(1, about.recordings))
    names = RecordingNames(recording.name for recording in recordings)
    if references is None:
        queries = read_task(path)
        if not any(query.relevant for query in queries):
            raise TaskError(f"{path} has no query of which something is to be found")
        return Questions(queries, path, about, names)
    words = read_references(references, names)
    questions = Questions(read_queries(path, words, names), path, about, names)
    unheard = len(names) - len(words.recordings)
    if unheard and console is not None:
        console.print(
            f"{unheard} of {len(names)} recordings have no words in {references}: a hit there is a false alarm",
            markup=False, soft_wrap=True,
        )  # fmt: skip
    return questions


def run(
    backend: Backend,
    questions: Questions,
    console: Console,
    *,
    context_folder: Path | None = None,
    exact: bool = False,
    deep: bool = False,
    threshold: float | None = None,
    beta: float | None = None,
) -> TaskResult:
    """Search every query; a clip that cannot be searched is named, and counts as answered with nothing.

    Recordings that a query leaves out are left out of its search: they must not help to find the others. With
    `context_folder`, the query is the stretch of its source recording there, heard in its context.
    """
    queries, archive = questions.queries, questions.archive
    answers: dict[str, list[Ranked]] = {}
    stages: dict[str, Answer] = {}
    failed = 0
    for query in track(queries, "search", console=console):
        try:
            request = _request(query, questions, context_folder, backend)
            answer = backend.search.search(replace(request, exact=exact, deep=deep))
        except CLIP_ERRORS as error:
            failed += 1
            console.print(f"failed: {query.clip}: {code_of(error)}: {message_of(error)}", markup=False, soft_wrap=True)
            continue
        stages[query.clip] = answer
        answers[query.clip] = [Ranked(h.recording.name, h.start_s, h.end_s, h.score) for h in answer.hits]
    by_level = levels(queries, answers, archive.recordings, archive.hours * 3600.0, beta, threshold)
    return TaskResult(
        figures=figures_of(by_level),
        median_ms={
            name: round(float(np.median([getattr(a.timing_ms, name) for a in stages.values()])), 2) if stages else 0.0
            for name in (*STAGES, "total")
        },
        failed=failed,
        levels=by_level,
        answers=tuple(
            Answered(
                query,
                tuple(hits := answers.get(query.clip, [])),
                tuple(verdicts(query, hits, "located" in by_level)),
                stages[query.clip].timing_ms.total / 1e3 if query.clip in stages else 0.0,
            )
            for query in queries
        ),
    )


def _request(query: TaskQuery, questions: Questions, context_folder: Path | None, backend: Backend) -> Request:
    longest_s = backend.settings.max_query_s
    if context_folder is None:
        clip = read_clip(questions.path.parent / query.clip, longest_s)
    else:
        clip = read_clip(context_folder / query.source.name, longest_s, query.source.start_s, query.source.end_s)
    return Request([clip], questions.archive.name, LIMIT, exclude=frozenset(query.exclude))
