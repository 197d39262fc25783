"""The pipeline on a Dask cluster: what it stores is what one machine stores, whoever dies on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from indexer import pipeline
from indexer.report import Progressed
from tests.cluster.conftest import DEMO, Cluster, rows


def test_the_result_equals_that_of_one_machine(
    engine: Engine, tokenizer_path: Path, cluster: Cluster, alone: list[tuple[Any, ...]]
) -> None:
    report = pipeline.index_archive(engine, [DEMO], "demo", tokenizer_path, scheduler=cluster.address)
    assert (report.indexed, report.failed) == (46, [])
    assert rows(engine) == alone


class Striking:
    """Is told of progress, and strikes once when so many seconds of sound have been stored."""

    def __init__(self, after_s: float, strike: Callable[[], None]) -> None:
        self.after_s, self.strike, self.struck = after_s, strike, False

    def __call__(self, now: Progressed) -> None:
        if now.stage == "indexing" and now.done_s >= self.after_s and not self.struck:
            self.struck = True
            self.strike()


def test_workers_that_die_are_missed_by_nobody(
    engine: Engine, tokenizer_path: Path, cluster: Cluster, alone: list[tuple[Any, ...]]
) -> None:
    def strike() -> None:
        cluster.kill(cluster.workers[0])
        cluster.kill(cluster.workers[1])  # nobody is left
        cluster.start_worker()

    striking = Striking(60.0, strike)
    report = pipeline.index_archive(
        engine, [DEMO], "demo", tokenizer_path, scheduler=cluster.address, progress=striking
    )
    assert striking.struck
    assert (report.indexed, report.failed) == (46, [])
    assert rows(engine) == alone


def test_a_scheduler_that_dies_and_comes_back_is_found_again(
    engine: Engine, tokenizer_path: Path, cluster: Cluster, alone: list[tuple[Any, ...]]
) -> None:
    def strike() -> None:
        cluster.kill(cluster.scheduler)
        cluster.start_scheduler()
        cluster.start_worker()  # those of the old one may end with it

    striking = Striking(60.0, strike)
    report = pipeline.index_archive(
        engine, [DEMO], "demo", tokenizer_path, scheduler=cluster.address, progress=striking
    )
    assert striking.struck
    assert (report.indexed, report.failed) == (46, [])
    assert rows(engine) == alone
