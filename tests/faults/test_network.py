"""A machine that is cut off: whoever holds its connections does not wait for it for hours."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from pathlib import Path

import psycopg
from sqlalchemy import text

from indexer import database
from indexer.server import USER, Server


def test_both_ends_of_a_connection_ask_whether_the_other_is_there() -> None:
    folder = Path(tempfile.mkdtemp(prefix="sayagain-tcp-"))
    folder.chmod(0o755)
    server = Server(folder / "postgres")
    server.start()
    server.stop()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories='{folder / 'postgres'}'"
    log = os.fspath(folder / "postgres" / "server.log")
    assert server._run("pg_ctl", "start", "-D", str(server.data), "-w", "-l", log, "-o", options).returncode == 0
    try:
        engine = database.open_engine(folder, f"postgresql://{USER}@127.0.0.1:{port}/postgres")
        with engine.connect() as connection:
            driver = connection.connection.dbapi_connection
            assert isinstance(driver, psycopg.Connection)
            with socket.socket(fileno=os.dup(driver.fileno())) as own:
                ours = own.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
            theirs = connection.execute(text("SHOW tcp_keepalives_idle")).scalar_one()
            assert (ours, theirs) == (60, "60")
        engine.dispose()
    finally:
        server._run("pg_ctl", "stop", "-D", str(server.data), "-w", "-m", "immediate")
        shutil.rmtree(folder)
