"""Development tasks, indexed by the command line and opened for a bench to look inside."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.accuracy.__main__ import sayagain
from indexer import store
from indexer.recordings import list_recordings
from service.clips import read_clip
from service.deps import Backend
from service.evaluation.judging import Ranked, judge
from service.evaluation.metrics import average_precision
from service.evaluation.tasks import TaskQuery, read_task
from service.search import calibration
from service.search.candidates import Windows
from service.search.feedback import Setting
from service.search.localindex import View
from service.search.query import Query, hear
from service.search.rescoring import Float32
from service.search.stretches import Stretches, times_of
from service.settings import Settings

Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Archive:
    """An indexed archive, its task, and the queries as they are heard."""

    setting: Setting
    names: dict[int, str]
    tasks: Sequence[TaskQuery]
    queries: Sequence[Query]
    folder: Path

    def alive(self, query: TaskQuery, also: frozenset[str] = frozenset()) -> list[Bool]:
        """Segments that a query may find."""
        left_out = [number for number, name in self.names.items() if name in query.exclude | also]
        return [~np.isin(part.shard.recording, left_out) & part.alive for part in self.setting.view.parts]

    def precision(self, query: TaskQuery, places: Stretches, scores: npt.NDArray[np.floating]) -> float:
        """Average precision by file of places in the order of their scores."""
        times = times_of(places, self.setting.view)
        order = np.argsort(-scores, kind="stable")
        hits = [Ranked(self.names[int(times.recording[at])], 0.0, 0.0, float(scores[at])) for at in order]
        return average_precision(judge(query, hits, located=False))


def parser(about: str) -> argparse.ArgumentParser:
    """Arguments that say which tasks, and where they are."""
    out = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--speech", type=Path, required=True)
    out.add_argument("--tasks", type=Path, required=True)
    out.add_argument("--task", nargs="+", default=["english", "malayalam"])
    return out


@contextmanager
def indexed(
    task: str, arguments: argparse.Namespace, tokenizer: str | None = None, codes: bool = False, **settings: Any
) -> Iterator[Backend]:
    """A backend whose archive of the task's name has just been indexed, by the default tokenizer or another.

    With `codes` those are stored beside the tokens.
    """
    with tempfile.TemporaryDirectory() as home:
        own = (["--tokenizer", tokenizer] if tokenizer else []) + (["--codes"] if codes else [])
        sayagain(home, "index", str(arguments.speech / "dev" / task), "--archive", task, *own)
        backend = Backend.open(Settings(home=Path(home), **settings))
        try:
            yield backend
        finally:
            backend.close()


def opened(backend: Backend, name: str, arguments: argparse.Namespace) -> Archive:
    """The archive of a task with its queries."""
    task, folder = arguments.tasks / f"{name}.json", arguments.speech / "dev" / name
    with backend.connect() as connection:
        archive = store.get_archive(connection, name)
        assert archive.codebook_id is not None
        codebook = store.load_codebook(connection, archive.codebook_id)
        view = backend.search.index.view(connection, archive, codebook)
        names = {r.id: r.name for r in list_recordings(connection, archive.id, 10**9)}
    tokenizer = backend.search.tokenizer
    setting = Setting(view, codebook, calibration.sample_of(view), calibration.map_of(tokenizer.info))
    tasks = read_task(task)
    heard = [hear(read_clip(task.parent / q.clip, 60.0), tokenizer, codebook) for q in tasks]
    return Archive(setting, names, tasks, heard, folder)


def by_windows(
    view: View, windows: Windows, score: Callable[[npt.NDArray[np.uint16], Windows], Float32]
) -> tuple[Stretches, Float32]:
    """Windows as places, each with a score made from its part's ids."""
    scores = np.zeros(len(windows), np.float32)
    for those, shard in view.shards_of(windows.part):
        scores[those] = score(shard.ids, windows.take(those))
    return Stretches(windows.part, windows.segment, windows.low, windows.high, scores), scores


def print_table(what: str, tasks: Sequence[str], columns: Sequence[Mapping[str, Sequence[float]]]) -> None:
    """Means of each row's figures, a column for each task."""
    print(f"| {what} | {' | '.join(f'{task} MAP' for task in tasks)} |\n|---{'|---' * len(tasks)}|")
    for name in columns[0]:
        print(f"| {name} | {' | '.join(f'{np.mean(column[name]):.4f}' for column in columns)} |")
