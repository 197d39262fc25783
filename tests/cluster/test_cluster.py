"""The pipeline on a Dask cluster: what it stores is what one machine stores, whoever dies on the way."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from sqlalchemy import Engine, text

from indexer import pipeline
from indexer.cluster import ClusterPool, SchedulerLost
from indexer.discover import discover
from indexer.messages import Measure, Measured, Setup
from indexer.report import Progressed
from tests.cluster.conftest import DEMO, TAPES, Cluster, rows, until


class Striking:
    """Is told of progress, and strikes once when so many seconds of sound have been stored."""

    def __init__(self, after_s: float, strike: Callable[[], None]) -> None:
        self.after_s, self.strike, self.struck = after_s, strike, False

    def __call__(self, now: Progressed) -> None:
        if now.stage == "indexing" and now.done_s >= self.after_s and not self.struck:
            self.struck = True
            self.strike()


def test_the_result_equals_that_of_one_machine(
    engine: Engine, tokenizer_path: Path, cluster: Cluster, alone: list[tuple[Any, ...]]
) -> None:
    report = pipeline.index_archive(engine, [TAPES], "demo", tokenizer_path, scheduler=cluster.address)
    assert (report.indexed, report.failed) == (13, [])
    assert rows(engine) == alone


def test_workers_that_die_are_missed_by_nobody(
    engine: Engine, tokenizer_path: Path, cluster: Cluster, alone: list[tuple[Any, ...]]
) -> None:
    def strike() -> None:
        cluster.kill(cluster.workers[0])
        cluster.kill(cluster.workers[1])  # nobody is left
        cluster.start_worker()

    striking = Striking(20.0, strike)
    report = pipeline.index_archive(
        engine, [TAPES], "demo", tokenizer_path, scheduler=cluster.address, progress=striking
    )
    assert striking.struck
    assert (report.indexed, report.failed) == (13, [])
    assert rows(engine) == alone


def test_a_scheduler_that_dies_and_comes_back_is_found_again(
    engine: Engine, tokenizer_path: Path, cluster: Cluster, alone: list[tuple[Any, ...]]
) -> None:
    def strike() -> None:
        cluster.kill(cluster.scheduler)
        cluster.start_scheduler()
        cluster.start_worker()  # those of the old one may end with it

    striking = Striking(20.0, strike)
    report = pipeline.index_archive(
        engine, [TAPES], "demo", tokenizer_path, scheduler=cluster.address, progress=striking
    )
    assert striking.struck
    assert (report.indexed, report.failed) == (13, [])
    assert rows(engine) == alone


def test_a_coordinator_that_dies_leaves_what_it_stored_and_no_lock(
    engine: Engine, tokenizer_path: Path, cluster: Cluster, alone: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    url = engine.url.render_as_string(hide_password=False)
    said = tmp_path / "log"
    with said.open("wb") as log:
        coordinator = subprocess.Popen(
            [
                sys.executable, "-m", "service", "index", str(TAPES), "--archive", "demo", "--codes",
                "--scheduler", cluster.address,
            ],
            env={
                **os.environ, "SAYAGAIN_HOME": str(tmp_path), "SAYAGAIN_DATABASE_URL": url,
                "SAYAGAIN_TOKENIZER": str(tokenizer_path),
            },
            stdout=log, stderr=log,
        )  # fmt: skip

    def stored() -> int:
        with engine.connect() as connection:
            return int(connection.execute(text("SELECT count(*) FROM recording")).scalar_one())

    until(lambda: stored() >= 2 or coordinator.poll() is not None)
    coordinator.kill()
    coordinator.wait()
    assert stored() >= 2, said.read_text()

    def is_indexed() -> bool:  # the lock goes with the connection, as soon as the server sees that
        try:
            report = pipeline.index_archive(engine, [TAPES], "demo", tokenizer_path, scheduler=cluster.address)
        except pipeline.store.ArchiveBusy:
            return False
        assert report.failed == []
        return True

    until(is_indexed)
    without_ids = [row[1:] if isinstance(row[0], int) else row for row in alone]
    assert rows(engine, ids=False) == without_ids


def test_a_scheduler_that_does_not_come_back_ends_the_run(tokenizer_path: Path, cluster: Cluster) -> None:
    files = discover([TAPES]).files
    with ClusterPool(cluster.address, Setup(tokenizer_path, "cpu"), patience_s=3.0) as pool:
        (done,) = pool.run([Measure(files)])
        assert isinstance(done.result, Measured)
        assert all(done.result.durations_s)
        cluster.kill(cluster.scheduler)
        with pytest.raises(SchedulerLost, match="does not answer"):
            list(pool.run([Measure(files)]))


def test_no_scheduler_is_one_line(tokenizer_path: Path) -> None:
    with pytest.raises(SchedulerLost) as raised:
        ClusterPool("tcp://127.0.0.1:1", Setup(tokenizer_path, "cpu"), patience_s=1.0)
    assert raised.value.code == "scheduler_lost"
    assert "\n" not in str(raised.value)


@pytest.fixture
def other_host() -> Iterator[tuple[str, list[str]]]:
    """The address of this host in a network of two, and what runs a command on the other."""
    name = f"say{os.getpid() % 100_000}"
    here, there = "198.18.251.1", "198.18.251.2"
    made: list[list[str]] = [
        ["ip", "netns", "add", name],
        ["ip", "link", "add", f"{name}a", "type", "veth", "peer", "name", f"{name}b"],
        ["ip", "link", "set", f"{name}b", "netns", name],
        ["ip", "addr", "add", f"{here}/30", "dev", f"{name}a"],
        ["ip", "link", "set", f"{name}a", "up"],
        ["ip", "-n", name, "addr", "add", f"{there}/30", "dev", f"{name}b"],
        ["ip", "-n", name, "link", "set", f"{name}b", "up"],
        ["ip", "-n", name, "link", "set", "lo", "up"],
    ]
    try:
        for command in made:
            try:
                done = subprocess.run(command, capture_output=True, text=True)
            except OSError:
                pytest.skip("there is no `ip` to make network namespaces with")
            if done.returncode:
                pytest.skip(f"no network namespaces here: {done.stderr.strip()}")
        yield here, ["ip", "netns", "exec", name]
    finally:
        for command in (["ip", "netns", "del", name], ["ip", "link", "del", f"{name}a"]):
            subprocess.run(command, capture_output=True, check=False)


def test_across_two_networks_with_a_tokenizer_that_is_sent(
    engine: Engine, tokenizer_path: Path, other_host: tuple[str, list[str]], tmp_path: Path
) -> None:
    here, inside = other_host
    model = onnx.load(tokenizer_path)
    for entry in model.metadata_props:
        if entry.key == "version":
            entry.value = "unheard of"
    own = tmp_path / "own.onnx"
    onnx.save(model, own)
    folder = tmp_path / "dask"
    folder.mkdir()
    cluster = Cluster(folder, here)
    try:
        cluster.start_scheduler()
        for _ in range(2):
            cluster.start_worker(inside=inside, TMPDIR=str(folder))
        report = pipeline.index_archive(engine, [DEMO / "field-notes"], "there", own, scheduler=cluster.address)
    finally:
        cluster.close()
    assert (report.indexed, report.failed) == (6, [])
    (sent,) = folder.glob("sayagain-tokenizers-*/*.onnx")
    assert sent.read_bytes() == own.read_bytes()
    there = rows(engine, ids=False)
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM archive"))
    pipeline.index_archive(engine, [DEMO / "field-notes"], "there", own)
    assert rows(engine, ids=False) == there
