import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from indexer import database, embedded

# Joins the server of a home, says so, and stays until its standard input ends.
CLIENT = """
import sys
from pathlib import Path
from indexer import database
engine = database.open_engine(Path(sys.argv[1]), None)
with database.connect(engine) as connection:
    connection.exec_driver_sql("SELECT pg_advisory_xact_lock(1)")
    connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS seen (n int)")
    connection.exec_driver_sql("INSERT INTO seen VALUES (1)")
    connection.commit()
print("here", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="sg-"))
    yield folder / "home"
    embedded.leave(folder / "home")
    shutil.rmtree(folder)


def client(home: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", CLIENT, str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    return process


def end(process: "subprocess.Popen[str]") -> None:
    process.communicate(timeout=30)
    assert process.returncode == 0


def kill(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()


def server_pid(home: Path) -> int | None:
    path = home / "postgres" / "postmaster.pid"
    return int(path.read_text().splitlines()[0]) if path.exists() else None


def count(home: Path) -> int:
    engine = database.open_engine(home, None)
    with database.connect(engine) as connection:
        found = connection.execute(text("SELECT count(*) FROM seen")).scalar_one()
    engine.dispose()
    return found


def test_processes_share_one_server_and_the_last_stops_it(home: Path) -> None:
    first, second = client(home), client(home)
    pid = server_pid(home)
    end(first)
    assert server_pid(home) == pid
    third = client(home)
    end(second)
    assert server_pid(home) == pid
    end(third)
    assert server_pid(home) is None
    assert count(home) == 3


def test_a_killed_client_holds_nobody_up(home: Path) -> None:
    first, second = client(home), client(home)
    kill(first)
    assert count(home) == 2
    embedded.leave(home)
    end(second)
    assert server_pid(home) is None


def test_a_killed_last_client_leaves_a_server_that_the_next_one_joins(home: Path) -> None:
    kill(client(home))
    pid = server_pid(home)
    assert pid is not None
    second = client(home)
    assert server_pid(home) == pid
    end(second)
    assert server_pid(home) is None


def test_a_killed_server_loses_nothing(home: Path) -> None:
    kill(client(home))
    pid = server_pid(home)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert count(home) == 1
    assert server_pid(home) != pid


def test_a_pid_file_that_names_another_process_is_not_believed(home: Path) -> None:
    end(client(home))
    stale = home / "postgres" / "postmaster.pid"
    lines = [str(os.getpid()), str(home / "postgres"), "1", "5432", str(home / "postgres"), "", "0 0", "ready   "]
    stale.write_text("\n".join(lines) + "\n")
    assert count(home) == 1


def test_many_start_at_once(home: Path) -> None:
    starting = [
        subprocess.Popen(
            [sys.executable, "-c", CLIENT, str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    for process in starting:
        end(process)
    assert count(home) == 4


@pytest.mark.parametrize("name", ["a b'c, d", "very-long-" * 15, "ünïcode-😀"])
def test_odd_and_long_homes(home: Path, name: str) -> None:
    odd = home / name
    engine = database.open_engine(odd, None)
    with database.connect(engine) as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1
        socket = connection.execute(text("SHOW unix_socket_directories")).scalar_one()
    engine.dispose()
    embedded.leave(odd)
    assert server_pid(odd) is None
    if not socket.startswith(str(home)):
        shutil.rmtree(socket)


def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(database.DatabaseError) as caught:
        database.open_engine(tmp_path / "file" / "home", None)
    assert caught.value.code == "database_unavailable"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_an_ordinary_user_starts_it_too(home: Path) -> None:
    user = pwd.getpwnam("nobody")
    home.mkdir()
    home.parent.chmod(0o755)
    os.chown(home, user.pw_uid, user.pw_gid)
    code = CLIENT.replace("sys.stdin.read()", f"import os; assert os.getuid() == {user.pw_uid}")
    child = os.fork()
    if child == 0:  # imports happen as root: the interpreter may lie where nobody else may read
        os.setgroups([])
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)
        os.environ["HOME"] = str(home)
        status = 1
        try:
            sys.argv = ["", str(home)]
            exec(compile(code, "client", "exec"), {"__name__": "client"})
            status = 0
            embedded.leave(home)
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (home / "postgres").stat().st_uid == user.pw_uid
    assert server_pid(home) is None
    # Root joins as the owner of what is there.
    assert count(home) == 1
    assert (home / "postgres").stat().st_uid == user.pw_uid


def test_starting_takes_moments(home: Path) -> None:
    end(client(home))
    started = time.perf_counter()
    count(home)
    assert time.perf_counter() - started < 5.0


# Multiplies all the time, while a server is made, started and stopped.
MULTIPLYING = """
import os, sys, threading, time
from pathlib import Path
import numpy as np
from indexer.server import Server
done = 0
def multiply():
    global done
    one, other = np.ones((1_500, 64), np.float32), np.ones((64, 1_024), np.float32)
    while True:
        one @ other
        done += 1
threading.Thread(target=multiply, daemon=True).start()
server = Server(Path(sys.argv[1]))
for _ in range(3):
    server.start()
    server.stop()
    before = done
    deadline = time.monotonic() + 20
    while done < before + 2:
        if time.monotonic() > deadline:
            os._exit(1)
        time.sleep(0.01)
os._exit(0)
"""


def test_whoever_multiplies_meanwhile_goes_on(home: Path) -> None:
    home.mkdir()
    words = [sys.executable, "-c", MULTIPLYING, str(home / "postgres")]
    assert subprocess.run(words, timeout=120, check=False).returncode == 0
