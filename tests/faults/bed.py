"""Where faults are made: sound files, a server of its own, what they ought to become, and runs until that is so."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import sqlalchemy as sa

from indexer import database, embedded
from indexer.server import PORT, USER, Server
from service.deps import Backend
from service.search.answer import Request
from service.search.query import Reference
from service.settings import Settings
from tests.faults.contents import Contents, compare, contents
from tests.faults.errors import Difference
from tests.faults.runs import Order, Outcome, Run
from tests.indexer import sounds

FILES = 28  # four of each format
RERUNS = 20  # after which a run ought to have finished
LOST = {"database_unavailable", "archive_busy", "workers_failed"}  # what a run may end with, when things go wrong
ASKED = ("03.ogg", 0.4, 1.1)  # what is looked for afterwards

Hits = list[tuple[str, float, float, float]]


class Bed:
    """A folder that is not below pytest's own: others cannot pass through that, and the server is somebody else."""

    def __init__(self, folder: Path, tokenizer: Path) -> None:
        self.folder, self.tokenizer = folder, tokenizer
        folder.chmod(0o755)
        self.audio = folder / "audio"
        self.audio.mkdir()
        suffixes = list(sounds.CODECS)
        for number in range(FILES):
            sound = sounds.babble(1.2 + 0.07 * number, number)
            sounds.write(self.audio / f"{number:02}{suffixes[number % len(suffixes)]}", sound)
        self.server = Server(folder / "external")
        self._expected: dict[str | None, Contents] = {}
        self._number = 0
        self._began = time.monotonic()

    def close(self) -> None:
        """Stop the servers."""
        if "_backend" in vars(self):
            self._backend.close()
        if "_engine" in vars(self):
            self._engine.dispose()
        for home in self.folder.iterdir():
            if (home / "postgres").is_dir():
                Server(home / "postgres").stop()
        self.server.stop()

    # Servers

    @property
    def url(self) -> str:
        """The server that is nobody's child: started where it does not run, as whoever looks after it would."""
        return started(self.server)

    @cached_property
    def _engine(self) -> sa.Engine:
        engine = database.open_engine(self.folder, self.url)
        database.migrate(engine)
        return engine

    @property
    def engine(self) -> sa.Engine:
        """That server's, which runs, with the schema."""
        _ = self.url
        return self._engine

    @cached_property
    def home(self) -> Path:
        """A data folder with an embedded server that many runs share."""
        return self.new_home()

    def new_home(self) -> Path:
        """A data folder without anything in it."""
        self._number += 1
        home = self.folder / f"home{self._number}"
        home.mkdir(mode=0o755)
        return home

    # Runs

    def order(self, archive: str, **different: object) -> Order:
        """An order for a new archive in the external server, or as it is said."""
        self._number += 1
        usual = Order(
            self.folder / "home", self.audio, f"{archive}-{self._number}", self.tokenizer, self.url,
            log=self.folder / "runs.log",
        )  # fmt: skip
        return replace(usual, **different)  # type: ignore[arg-type]

    def expected(self, codebook: str | None = "tokenizer") -> Contents:
        """What an undisturbed run makes of the files."""
        if codebook not in self._expected:
            order = self.order("calm", codebook=codebook)
            began = time.monotonic()
            with Run(order) as run:
                outcome = run.outcome()
            if outcome.report is None or outcome.failed:
                raise Difference(f"an undisturbed run fails: {outcome}")
            self._usual_s = time.monotonic() - began
            with self.engine.connect() as connection:
                self._expected[codebook] = contents(connection, order.archive)
            if codebook == "tokenizer":
                self._hits = self.ask(order.archive)
        return self._expected[codebook]

    @property
    def usual_s(self) -> float:
        """Seconds that an undisturbed run takes here and now."""
        self.expected()
        return self._usual_s

    def moment(self, rng: random.Random) -> float:
        """Seconds from a run's beginning to a random moment of it."""
        return rng.uniform(0.0, self.usual_s)

    def finish(self, order: Order, allowed: set[str] = LOST, patient: bool = True) -> Outcome:
        """Run until a run ends well and no file has failed. Raises Difference where none does."""
        last = Outcome()
        for _ in range(RERUNS):
            with Run(order) as run:
                last = run.outcome()
            if last.report is not None and not last.failed:
                return last
            if last.report is None and last.code not in allowed:
                raise Difference(f"a rerun ends with {last.code}: {last.message} (log: {self.log_end()})")
            if not patient:
                break
            time.sleep(0.2)
        raise Difference(f"reruns do not finish: {last.code} {last.message} {last.failed}")

    def check(self, order: Order) -> None:
        """Raises Difference where an archive is not what an undisturbed run would have made of it."""
        names = {path.name for path in order.audio.iterdir()}
        expected = self.expected(order.codebook)
        if order.url == self.url:
            with self.engine.connect() as connection:
                found = contents(connection, order.archive)
        else:
            engine = database.open_engine(order.home, order.url)
            try:
                with engine.connect() as connection:
                    found = contents(connection, order.archive)
            finally:
                engine.dispose()
                embedded.leave(order.home)
        if len(names) < FILES:
            expected = replace(found, recordings={name: expected.recordings[name] for name in names})
        compare(found, expected)
        if (
            len(names) == FILES
            and order.url == self.url
            and order.codebook == "tokenizer"
            and self.ask(order.archive) != self._hits
        ):
            found_now = set(self.ask(order.archive))
            raise Difference(
                f"a search finds {found_now - set(self._hits)} where it found {set(self._hits) - found_now}"
            )

    def settle(self, order: Order) -> None:
        """Finish and check."""
        self.finish(order)
        self.check(order)

    @cached_property
    def _backend(self) -> Backend:
        settings = Settings(
            home=self.folder / "home", database_url=self.url, tokenizer=self.tokenizer, threads=1, _env_file=None
        )  # type: ignore[call-arg]
        return Backend.open(settings)

    def ask(self, archive: str) -> Hits:
        """Where a stretch of a recording is said again, by the local index of an archive of the external server."""
        _ = self.url
        return ask(self._backend, archive)

    def log_end(self) -> str:
        """The last that runs have written."""
        with contextlib.suppress(OSError):
            return (self.folder / "runs.log").read_text(errors="replace")[-1_500:]
        return ""


def ask(backend: Backend, archive: str) -> Hits:
    """Hits without ids, as far as sums of floats are the same in any order; all, since equals come in any order too."""
    name, start_s, end_s = ASKED
    request = Request([Reference(name, start_s, end_s)], archive, limit=1_000, exact=True)
    hits = backend.search.search(request).hits
    return sorted((h.recording.name, round(h.start_s, 3), round(h.end_s, 3), round(h.score, 4)) for h in hits)


def started(server: Server) -> str:
    """The URL of a server, which is started where it does not run."""
    socket = server.socket_folder() if server.running() else server.start()
    return f"postgresql+psycopg://{USER}@/postgres?host={socket}&port={PORT}"


def kill(pid: int) -> bool:
    """kill -9; whether there was such a process."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def postmaster(data: Path) -> int | None:
    """The server's process, if it runs."""
    lines = Server(data).pid_lines()
    return int(lines[0]) if lines and lines[0].strip().isdigit() else None


@contextlib.contextmanager
def own_audio(bed: Bed, files: int = FILES) -> Iterator[Path]:
    """A copy of the sound files, or of the first of them, to be spoilt."""
    copy = bed.new_home() / "audio"
    copy.mkdir()
    for path in sorted(bed.audio.iterdir())[:files]:
        shutil.copyfile(path, copy / path.name)
    try:
        yield copy
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def preload(bed: Bed) -> Path | None:
    """The library that makes clocks leap and disks be full, for LD_PRELOAD; None where there is no compiler."""
    source = Path(__file__).with_name("shim.c")
    out = bed.folder / "shim.so"
    if out.exists():
        return out
    for compiler in ("cc", "gcc", "clang"):
        program = shutil.which(compiler)
        if program is not None:
            done = subprocess.run(
                [program, "-shared", "-fPIC", "-O1", "-o", str(out), str(source), "-ldl"], check=False
            )
            if done.returncode == 0:
                return out
    return None


@contextlib.contextmanager
def surrounded(**variables: str) -> Iterator[None]:
    """Variables of the environment of what is started meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
