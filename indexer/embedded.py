"""The embedded PostgreSQL: started under the data folder by the first process that needs it, stopped by the last."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from indexer.server import PORT, USER, EmbeddedError, Server

__all__ = ["EmbeddedError", "join", "leave"]

START_LOCK_S = 60.0  # that another process may take to start or stop the server


@dataclass
class _Seat:
    """This process's share in a running server: an open file, share-locked as long as the process lives."""

    users: int
    pid: int


_seats: dict[Path, _Seat] = {}
_guard = threading.Lock()


def join(home: Path) -> str:
    """Start the server under `home`, or join it where it runs, and return its URL.

    It stops when the last process leaves. Every process that has joined holds a shared lock, which the kernel drops
    when the process dies, in whatever way; so there is no list of users that could be wrong. Raises EmbeddedError.
    """
    home = home.expanduser().absolute()
    try:
        home.mkdir(parents=True, exist_ok=True)
        with _guard, _locked(home / "postgres.lock"):
            if home not in _seats or _seats[home].pid != os.getpid():
                users = _open(home / "postgres.users")
                fcntl.flock(users, fcntl.LOCK_SH)
                _seats[home] = _Seat(users, os.getpid())
                atexit.register(leave, home)
            server = Server(home / "postgres")
            socket_folder = server.socket_folder() if server.running() else server.start()
    except OSError as error:
        raise EmbeddedError(f"the embedded PostgreSQL under {home}: {error.strerror or error}") from error
    return f"postgresql+psycopg://{USER}@/postgres?host={socket_folder}&port={PORT}"


def leave(home: Path) -> None:
    """Give this process's seat back; the server is stopped where nobody else has one."""
    home = home.expanduser().absolute()
    with _guard:
        seat = _seats.pop(home, None)
        if seat is None or seat.pid != os.getpid():
            return
        atexit.unregister(leave)
        for other in _seats:
            atexit.register(leave, other)
        with contextlib.suppress(OSError, EmbeddedError), _locked(home / "postgres.lock"):
            try:
                fcntl.flock(seat.users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return  # someone else is still using it
            else:
                Server(home / "postgres").stop()
            finally:
                os.close(seat.users)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time starts or stops the server."""
    handle = _open(path)
    try:
        deadline = time.monotonic() + START_LOCK_S
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise EmbeddedError(f"another process has held {path} for {START_LOCK_S:.0f} s") from None
                time.sleep(0.02)
        yield
    finally:
        os.close(handle)


def _open(path: Path) -> int:
    """A file to lock; root leaves it to the folder's owner, who may come next."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.fchown(handle, owner.st_uid, owner.st_gid)
    return handle
