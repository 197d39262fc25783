"""`sayagain serve`: the HTTP service in one process or in several, and the process that does jobs beside these."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.context import SpawnProcess
from typing import TYPE_CHECKING, Annotated

import typer

from service.console import failing
from service.errors import EXIT_FAILED
from service.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

APPLICATION = "service.serving:application"
STARTUP_FAILURE = 3  # the exit code of a server that could not start; ours says something else by it
HEALTHY_S = 20  # a worker that says nothing for so long hangs; to load what it needs takes seconds on a busy machine
RESTART_S = 5.0  # before a runner that has ended is started again

log = logging.getLogger("sayagain.serve")


def serve(
    host: Annotated[str | None, typer.Option(help="address to listen on; else 127.0.0.1, or SAYAGAIN_HOST")] = None,
    port: Annotated[int, typer.Option(min=0, max=65_535)] = 8_000,
    workers: Annotated[
        int, typer.Option(min=1, help="processes that answer; they share the files of the local index by memory map")
    ] = 1,
) -> None:
    """Answer HTTP requests. SIGTERM and Ctrl-C let requests that have begun end first, see SAYAGAIN_SHUTDOWN_S."""
    from model.tokenizer import Tokenizer
    from service import configuring, logs
    from service.deps import open_database

    signal.signal(signal.SIGTERM, _end)
    with failing(), ExitStack() as held:
        if host is not None:
            os.environ["SAYAGAIN_HOST"] = host  # where the workers read it too
        settings = Settings()
        logs.configure(settings)
        for warning in configuring.unknown():
            log.warning("%s", warning)
        # What cannot be had is one line here. The embedded database stays up as long as this process.
        Tokenizer(settings.tokenizer, threads=1)
        open_database(settings).dispose()
        if workers > 1:
            held.enter_context(_metrics_of_all())
            if settings.run_jobs:
                held.enter_context(_with_runner(work, settings.shutdown_s))
        started = _run(settings, port, workers)
    raise typer.Exit(0 if started else EXIT_FAILED)


def application() -> FastAPI:
    """The application of a server process, which ends when `serve` does, even where that was killed."""
    from service import logs
    from service.app import create_app

    settings = Settings()
    logs.configure(settings)
    _follow()
    return create_app(settings)


def _follow() -> None:
    """End this process when the one that it was made by is gone, in whatever way."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def follow() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow, name="sayagain-follow", daemon=True).start()


def _run(settings: Settings, port: int, workers: int) -> bool:
    """Serve until a signal comes; whether the server could start at all."""
    import uvicorn
    from uvicorn.supervisors import Multiprocess

    config = uvicorn.Config(
        APPLICATION, factory=True, host=settings.host, port=port, workers=workers, log_config=None, access_log=False,
        timeout_graceful_shutdown=settings.shutdown_s, timeout_worker_healthcheck=HEALTHY_S,
    )  # fmt: skip
    try:
        if workers > 1:
            supervisor = Multiprocess(config, [config.bind_socket()])
            supervisor.run()
            return all(process.exitcode != STARTUP_FAILURE for process in supervisor.processes)
        server = uvicorn.Server(config)
        server.run()
    except KeyboardInterrupt:  # told again by the server, after all has ended
        return True
    except SystemExit as end:
        return end.code == 0
    return server.started


def _end(*_: object) -> None:
    """SIGTERM before the server listens to it, and once more after it has shut down."""
    raise SystemExit(0)


@contextmanager
def _metrics_of_all() -> Iterator[None]:
    """A folder where all processes keep their metrics, so that any of them can tell of all (service.metrics)."""
    with tempfile.TemporaryDirectory(prefix="sayagain-metrics-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        yield


def work() -> None:
    """`sayagain work` as a process beside the workers, which ends when `serve` does."""
    from service import working

    os.setsid()  # Ctrl-C is for `serve`, which then ends this
    _follow()
    try:
        working.work()
    except typer.Exit as end:  # nobody is there to make an exit code of it
        raise SystemExit(end.exit_code) from None


@contextmanager
def _with_runner(work: Callable[[], None], patience_s: float) -> Iterator[None]:
    """Jobs are done by one process beside the workers, not by each of these; it is started again if it ends.

    At the end it is terminated, and killed if that takes longer than `patience_s` seconds.
    """
    os.environ["SAYAGAIN_RUN_JOBS"] = "false"
    leaving, lock = threading.Event(), threading.Lock()

    def start() -> SpawnProcess:
        process = multiprocessing.get_context("spawn").Process(target=work, name="sayagain-work")
        process.start()
        return process

    running = [start()]

    def watch() -> None:
        while True:
            running[0].join()
            if not leaving.is_set():
                code = running[0].exitcode
                log.error("the process that does jobs has ended (%s); another starts in %g s", code, RESTART_S)
            if leaving.wait(RESTART_S):
                return
            with lock:
                if not leaving.is_set():
                    running[0] = start()

    thread = threading.Thread(target=watch, name="sayagain-runner")
    thread.start()
    try:
        yield
    finally:
        with lock:
            leaving.set()
        running[0].terminate()
        thread.join(patience_s)
        running[0].kill()
        thread.join()
