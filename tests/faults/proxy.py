"""A proxy between a client and PostgreSQL that drops a connection after so many bytes."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading

BLOCK = 16_384


class Proxy:
    """Listens on a port of this machine and passes on to a server's socket. A context manager.

    `after` bytes from the client, of all its connections together, everything is dropped: reset, as by a firewall that
    restarts, or closed. None drops nothing.
    """

    def __init__(self, path: str, after: int | None = None, *, reset: bool = False) -> None:
        self.bytes = 0  # from the client so far
        self.dropped = False
        self._path, self._after, self._reset = path, after, reset
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._over = False
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._thread.join()

    def _serve(self) -> None:
        """One thread for all connections: each is a pair of sockets, both ways."""
        pairs: dict[socket.socket, socket.socket] = {}
        clients: set[socket.socket] = set()
        try:
            while not self._over:
                for ready in select.select([self._listening, *pairs], [], [], 0.05)[0]:
                    if ready is self._listening:
                        client = ready.accept()[0]
                        server = socket.socket(socket.AF_UNIX)
                        server.connect(self._path)
                        pairs |= {client: server, server: client}
                        clients.add(client)
                    elif ready in pairs:
                        self._pass_on(ready, pairs, clients)
                if self.dropped:
                    self._drop(pairs)
        finally:
            self._drop(pairs)
            self._listening.close()

    def _pass_on(
        self, ready: socket.socket, pairs: dict[socket.socket, socket.socket], clients: set[socket.socket]
    ) -> None:
        data = b""
        with contextlib.suppress(OSError):
            data = ready.recv(BLOCK)
        if ready in clients:
            if self._after is not None and self.bytes + len(data) > self._after:
                data = data[: max(0, self._after - self.bytes)]  # the last of it is a torn message
                self.dropped = True
            self.bytes += len(data)
        try:
            pairs[ready].sendall(data)
        except OSError:
            data = b""
        if not data:
            other = pairs.pop(ready)
            del pairs[other]
            ready.close()
            other.close()

    def _drop(self, pairs: dict[socket.socket, socket.socket]) -> None:
        for one in pairs:
            if self._reset:
                with contextlib.suppress(OSError):
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            one.close()
        pairs.clear()
