"""What a Dask worker has at hand for the indexer: tokenizers and codebooks by their hash, and processes of its own.

A file is never decoded in the Dask worker itself, but in a worker process beside it, exactly as on one machine, with
its limits of time and memory: a file that breaks its decoder ends that process, and the Dask worker notices nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import tempfile
import threading
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from indexer.messages import Measure, Result, Setup, Task, UseCodebook
from indexer.pool import Pool, WorkersFailed
from model.tokenizer import DEFAULT_WEIGHTS

IDLE_S = 120.0  # after which processes that have nothing to do are ended
MOST_CODEBOOKS = 4  # kept in memory

Kind = Literal["tokenizer", "codebook"]


def release() -> str:
    """The release that is installed here."""
    try:
        return version("sayagain")
    except PackageNotFoundError:
        return "unknown"


@dataclass(frozen=True)
class Wanted:
    """What a task is to be done with; hashes in hex, and `setup` but for the tokenizer's path, which the worker knows.

    With `look` files are looked for before anything is tried.
    """

    release: str
    setup: Setup
    tokenizer_sha256: str
    codebook_sha256: str | None = None
    look: bool = True

    @property
    def kind(self) -> tuple[str, Setup]:
        """The same for tasks that one process can do."""
        return self.tokenizer_sha256, self.setup


@dataclass(frozen=True)
class Lacking:
    """The worker has no such tokenizer or codebook yet."""

    kind: Kind


@dataclass(frozen=True)
class Unable:
    """The worker cannot do the task, whatever the file is like: it is for another worker."""

    why: str


@dataclass(frozen=True, eq=False)
class Answer:
    """What came of a task at the worker of that address."""

    address: str
    result: Result | Lacking | Unable


class _Hand:
    """A worker process, and which codebook it uses."""

    def __init__(self, path: Path, wanted: Wanted) -> None:
        """Raises WorkersFailed."""
        self.kind = wanted.kind
        self.pool = Pool(1, replace(wanted.setup, tokenizer_path=path))
        self.codebook_sha256: str | None = None

    def close(self) -> None:
        """End the process."""
        self.pool.__exit__(None, None, None)


class Desk:
    """All of that of one Dask worker process, whose threads share it."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder` is where tokenizers that were sent are kept; None: one of the user's among temporary files."""
        self._folder = folder
        self._lock = threading.Lock()
        self._tokenizers: dict[str, Path] = {}
        self._codebooks: dict[str, UseCodebook] = {}
        self._free: list[_Hand] = []
        self._idle: threading.Timer | None = None

    def has(self, kind: Kind, sha256: str) -> bool:
        """Whether that is at hand, looked for among the files of this machine too."""
        with self._lock:
            if kind == "codebook":
                return sha256 in self._codebooks
            if sha256 not in self._tokenizers:
                for path in (DEFAULT_WEIGHTS, self._file(sha256)):
                    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
                        self._tokenizers[sha256] = path
            return self._tokenizers.get(sha256, Path("/")).is_file()

    def take(self, kind: Kind, sha256: str, data: bytes) -> None:
        """Keep what was sent. Raises OSError where a file cannot be written."""
        if kind == "codebook":
            with self._lock:
                self._codebooks[sha256] = UseCodebook(pickle.loads(data))  # noqa: S301 (from the coordinator)
                while len(self._codebooks) > MOST_CODEBOOKS:
                    del self._codebooks[next(iter(self._codebooks))]
            return
        path = self._file(sha256)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(temporary, path)

    def do(self, wanted: Wanted, task: Task) -> Result | Lacking | Unable:
        """The result of a task; whatever goes wrong with its file is a Failure of that file."""
        if wanted.release != release():
            return Unable(f"it has sayagain {release()}, not {wanted.release}")
        if not self.has("tokenizer", wanted.tokenizer_sha256):
            return Lacking("tokenizer")
        if wanted.codebook_sha256 is not None and not self.has("codebook", wanted.codebook_sha256):
            return Lacking("codebook")
        files = task.files if isinstance(task, Measure) else [task.file]
        unseen = [file for file in files if isinstance(file.path, Path) and not file.path.exists()]
        if wanted.look and unseen:
            return Unable(f"it does not see {unseen[0].path}: the folder has to be shared under the same path")
        try:
            hand = self._hand(wanted)
        except (WorkersFailed, OSError) as error:
            return Unable(str(error))
        whole = False
        try:
            (done,) = hand.pool.run([task])
            whole = True
            return done.result
        except WorkersFailed as error:
            return Unable(str(error))
        finally:
            self._give_back(hand, whole)

    def leave(self) -> None:
        """End the processes that have nothing to do."""
        with self._lock:
            free, self._free = self._free, []
        for hand in free:
            hand.close()

    def _hand(self, wanted: Wanted) -> _Hand:
        """A process that has what is wanted: one that is free, or a new one."""
        kind = wanted.kind
        with self._lock:
            if self._idle is not None:
                self._idle.cancel()
            others = [hand for hand in self._free if hand.kind != kind]  # of runs that are over
            fitting = [hand for hand in self._free if hand.kind == kind]
            hand = fitting.pop() if fitting else None
            self._free = fitting
            path = self._tokenizers[wanted.tokenizer_sha256]
            codebook = None if wanted.codebook_sha256 is None else self._codebooks[wanted.codebook_sha256]
        for other in others:
            other.close()
        hand = hand or _Hand(path, wanted)
        if codebook is not None and hand.codebook_sha256 != wanted.codebook_sha256:
            hand.pool.use(codebook)
            hand.codebook_sha256 = wanted.codebook_sha256
        return hand

    def _give_back(self, hand: _Hand, whole: bool) -> None:
        if not whole:
            hand.close()
            return
        with self._lock:
            self._free.append(hand)
            if self._idle is not None:
                self._idle.cancel()
            self._idle = threading.Timer(IDLE_S, self.leave)
            self._idle.daemon = True
            self._idle.start()

    def _file(self, sha256: str) -> Path:
        folder = self._folder or Path(tempfile.gettempdir()) / f"sayagain-tokenizers-{os.geteuid()}"
        return folder / f"{sha256}.onnx"


_desk: Desk | None = None
_guard = threading.Lock()


def the_desk() -> Desk:
    """That of this process, made when it is first asked for."""
    global _desk
    with _guard:
        if _desk is None:
            _desk = Desk()
        return _desk


# What the coordinator has Dask call on its workers.


def do(wanted: Wanted, task: bytes) -> Answer:
    """Do a pickled task."""
    from distributed import get_worker

    address: str = get_worker().address
    return Answer(address, the_desk().do(wanted, pickle.loads(task)))  # noqa: S301 (from the coordinator)


def has(kind: Kind, sha256: str) -> bool:
    """Whether the worker has it."""
    return the_desk().has(kind, sha256)


def take(kind: Kind, sha256: str, data: bytes) -> None:
    """Give it to the worker."""
    the_desk().take(kind, sha256, data)


def leave() -> None:
    """The run is over: its processes go."""
    with contextlib.suppress(OSError):
        the_desk().leave()
