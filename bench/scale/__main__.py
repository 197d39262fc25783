"""Search at 10, 100, 1,000 and 5,000 hours: time of each stage, memory, what an exact search finds and this finds too.

    python -m bench.scale --speech SPEECH --tasks TASKS [--home HOME] [--hours 10 100 1000] [--engines votes gin …]

A real archive (the training and development speech) is indexed, with `--home` once for all runs, and grown to each
size by its own segments said by others (see `corpus`). Queries are the English development task's clips.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from bench.accuracy.__main__ import sayagain
from bench.scale import corpus, engines
from bench.scale.corpus import Real
from indexer import database, store
from indexer.recordings import list_recordings
from model.tokenizer import DEFAULT_WEIGHTS, Tokenizer
from service.clips import read_clip
from service.evaluation.tasks import TaskQuery, read_task
from service.search import calibration, cascade, stretches
from service.search.answer import STAGES, Clock, Request
from service.search.feedback import Setting
from service.search.localindex import LocalIndex, View
from service.search.query import Query, hear
from service.search.ranking import rank

ARCHIVE = "scale"
DEPTH = 2_000  # segments that an engine may hand on
TOP = 100  # of the exact search: how many of them are found
ENGINES = ("votes", "scan", "gin", "rows", "tantivy")
SLOW_TO_BUILD = {"gin": 1_000.0, "tantivy": 1_000.0}  # hours beyond which an engine is left out
EXACT_QUERIES = {10.0: 60, 100.0: 40, 1_000.0: 16, 5_000.0: 4}


def real_archive(home: Path, speech: Path, task: Path) -> tuple[Real, dict[str, int], float]:
    """The archive that is grown, its recordings' ids by name, and its bytes an hour in the database."""
    engine = database.open_engine(home, None)
    database.migrate(engine)
    with database.connect(engine) as connection:
        there = ARCHIVE in {archive.name for archive in store.list_archives(connection)}
    if not there:
        sayagain(str(home), "index", str(speech / "train"), str(speech / "dev" / task.stem), "--archive", ARCHIVE)
    with database.connect(engine) as connection:
        archive = store.get_archive(connection, ARCHIVE)
        size = next(a.bytes for a in store.list_archives(connection) if a.name == ARCHIVE)
        assert archive.codebook_id is not None
        codebook = store.load_codebook(connection, archive.codebook_id)
        view = LocalIndex(None).view(connection, archive, codebook)
        ids = {r.name: r.id for r in list_recordings(connection, archive.id, 10**9)}
    engine.dispose()
    return Real([part.shard for part in view.parts], codebook), ids, (size - codebook.centroids.nbytes) / archive.hours


def heard(task: Path, tokenizer: Tokenizer, real: Real) -> tuple[list[TaskQuery], list[Query]]:
    """The task's queries, by the archive's codebook."""
    tasks = read_task(task)
    return tasks, [hear(read_clip(task.parent / q.clip, 30.0), tokenizer, real.codebook) for q in tasks]


def segments_found(found: stretches.Stretches, view: View, top: int) -> list[int]:
    """The segments of the `top` most similar stretches that are in segments of their own."""
    starts = np.cumsum([0, *(part.shard.segments for part in view.parts)])
    order = np.argsort(-found.similarity, kind="stable")
    return list(dict.fromkeys((starts[found.part] + found.segment)[order].tolist()))[:top]


def exact_of(queries: Sequence[Query], view: View) -> tuple[list[list[int]], float]:
    """For each query the segments of an exact search's best hits; and the seconds of one."""
    alive = [part.alive for part in view.parts]
    began, out = time.perf_counter(), []
    for query in queries:
        everywhere = cascade.windows_of(query, view, alive, 0, 0, True)
        out.append(segments_found(stretches.rescore(query.tables, view, everywhere), view, TOP))
    return out, (time.perf_counter() - began) / max(1, len(queries))


def shared(one: Sequence[int], other: Sequence[int] | npt.NDArray[np.int64]) -> float:
    """The share of `one` that is in `other`."""
    return len(set(one) & set(np.asarray(other).tolist())) / max(1, len(one))


def percentiles(values: Sequence[float]) -> str:
    """Middle and 95th percentile, in milliseconds."""
    return f"{np.percentile(values, 50):.1f} / {np.percentile(values, 95):.1f}"


def measure_stages(queries: Sequence[Query], setting: Setting, exact: Sequence[list[int]]) -> list[str]:
    """p50 / p95 of each stage for twenty hits, of their sum, and the recall of the exact search's best."""
    view = setting.view
    alive = [part.alive for part in view.parts]
    settings, request = cascade.SearchSettings(), Request((), ARCHIVE)
    times: dict[str, list[float]] = {stage: [] for stage in (*STAGES, "total")}
    recall = []
    for number, query in enumerate([queries[0], *queries]):
        clock = Clock()
        places, evidence = cascade.find(query, setting, alive, settings, False, clock)
        rank(places, evidence, view, request, ())
        clock.lap("rescoring")
        if number == 0:
            continue  # the first touches everything once
        for stage in STAGES:
            times[stage].append(clock.ms[stage])
        times["total"].append(sum(clock.ms.values()))
        if number <= len(exact):
            recall.append(shared(exact[number - 1], segments_found(places, view, TOP)))
    row = [percentiles(times[stage]) for stage in ("candidates", "alignment", "rescoring", "total")]
    return [*row, f"{np.mean(recall):.3f}"]


def measure_engine(
    make: Callable[[], engines.CandidateEngine], queries: Sequence[Query], exact: Sequence[list[int]], hours: float
) -> list[str]:
    """Seconds to build, p50 / p95 of a lookup, the exact search's best among its segments, bytes an hour."""
    began = time.perf_counter()
    engine = make()
    built_s = time.perf_counter() - began
    engine.find(queries[0], DEPTH)
    times, recall = [], []
    for number, query in enumerate(queries[: max(30, len(exact))]):
        began = time.perf_counter()
        found = engine.find(query, DEPTH)
        times.append((time.perf_counter() - began) * 1e3)
        if number < len(exact):
            recall.append(shared(exact[number], found))
    return [f"{built_s:.0f}", percentiles(times), f"{np.mean(recall):.3f}", f"{engine.bytes / hours / 1e6:.3f}"]


def maker(name: str, view: View, real: Real, server: sa.Engine) -> Callable[[], engines.CandidateEngine]:
    """What builds an engine."""
    return {
        "votes": lambda: engines.Votes(view, real.codebook),
        "scan": lambda: engines.Scan(view),
        "gin": lambda: engines.Gin(server, view, real.codebook),
        "rows": lambda: engines.PostingRows(server, view, real.codebook),
        "tantivy": lambda: engines.Tantivy(view, real.codebook),
    }[name]


def main() -> None:
    """Index or find the real archive, grow it, measure, print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--home", type=Path, help="data folder that keeps the real archive for other runs")
    parser.add_argument("--hours", type=float, nargs="+", default=[10.0, 100.0, 1_000.0])
    parser.add_argument("--engines", nargs="*", default=list(ENGINES), choices=ENGINES)
    arguments = parser.parse_args()
    task = arguments.tasks / "english.json"
    with tempfile.TemporaryDirectory(prefix="sayagain-scale-") as folder:
        home = arguments.home or Path(folder) / "home"
        real, ids, stored = real_archive(home, arguments.speech, task)
        tasks, queries = heard(task, Tokenizer(DEFAULT_WEIGHTS), real)
        ranks = corpus.confusions(tasks, real, ids)
        print(
            f"real archive: {real.hours:.1f} h, K = {real.codebook.size}, {stored / 1e6:.2f} MB an hour in "
            f"the database; "
            f"another speaker's token is another one in {(ranks > 0).mean():.0%} of frames, "
            f"half of them beyond the {np.median(ranks[ranks > 0]):.0f} nearest; {os.cpu_count()} cores\n"
        )
        server = database.open_engine(Path(folder) / "server", None)
        stages, lookups = [], []
        for hours in arguments.hours:
            view = corpus.grown(real, hours, ranks)
            setting = Setting(view, real.codebook, calibration.sample_of(view))
            exact, exact_s = exact_of(queries[: EXACT_QUERIES.get(hours, 8)], view)
            segments = sum(part.shard.segments for part in view.parts)
            row = measure_stages(queries, setting, exact)
            stages.append(
                [f"{hours:,.0f}", f"{segments:,}", *row, f"{exact_s:.2f}", f"{view.bytes / 1e6:,.0f}",
                 f"{view.bytes / hours / 1e6:.2f}"]
            )  # fmt: skip
            print("|", " | ".join(stages[-1]), "|", flush=True)
            for name in arguments.engines:
                if hours <= SLOW_TO_BUILD.get(name, np.inf):
                    lookups.append(
                        [f"{hours:,.0f}", name, *measure_engine(maker(name, view, real, server), queries, exact, hours)]
                    )
                    print("|", " | ".join(lookups[-1]), "|", flush=True)
        server.dispose()
    print("\n| hours | segments | candidates, p50 / p95 ms | alignment | rescoring | all | recall@100 | exact, s "
          "| memory, MB | MB/h |\n|" + "---|" * 10)  # fmt: skip
    for line in stages:
        print("|", " | ".join(line), "|")
    print("\n| hours | engine | build, s | lookup, p50 / p95 ms | best 100 among its 2,000 | MB/h |\n|" + "---|" * 6)
    for line in lookups:
        print("|", " | ".join(line), "|")


if __name__ == "__main__":
    main()
