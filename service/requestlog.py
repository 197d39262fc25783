"""One line in the log for each request, under an id that the answer carries too."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "X-Request-ID"
NO_ROUTE = "none"
CLIENT_GONE = 499  # as nginx says it: nobody waited for an answer
PATH_CHARACTERS = 300

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
log = logging.getLogger("sayagain.requests")

_SANE = re.compile(r"[A-Za-z0-9._-]{1,100}")


@dataclass(frozen=True)
class Handled:
    """A request that has ended: its route's template, or NO_ROUTE, and what became of it."""

    method: str
    route: str
    status: int
    seconds: float


class RequestLog:
    """Gives each request an id, and tells of it when it has ended, in whatever way.

    The id is the client's own where that is sane. It is in `request.state.request_id`, in the context variable
    `request_id`, and in the answer's header. A query string, a form and keys are never logged.
    """

    def __init__(self, app: ASGIApp, observe: Callable[[Handled], None] | None = None) -> None:
        """`observe` is told of each request too."""
        self._app = app
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        number = _id_of(scope)
        scope.setdefault("state", {})["request_id"] = number
        # Not taken back: a request has a task of its own, and what the server logs about it last has the id too.
        request_id.set(number)
        answer = _Answer(receive, send, number)
        try:
            await self._app(scope, answer.receive, answer.send)
        finally:
            self._tell(scope, answer)

    def _tell(self, scope: Scope, answer: _Answer) -> None:
        path = "".join(c if c.isprintable() else "\ufffd" for c in scope["path"][:PATH_CHARACTERS])
        client, key = scope.get("client"), scope["state"].get("key")
        handled = Handled(scope["method"], _template(scope), answer.outcome(), answer.seconds())
        fields = {
            "method": handled.method,
            "route": handled.route,
            "path": path,
            "status": handled.status,
            "ms": round(handled.seconds * 1e3, 2),
            "bytes": answer.bytes,
            "client": client[0] if client else None,
            "key": getattr(key, "name", None),
            "aborted": answer.aborted,
        }
        log.info(
            "%s %s %d, %.1f ms, %d bytes, from %s%s%s",
            handled.method, path, handled.status, fields["ms"], answer.bytes, fields["client"],
            "" if key is None else f", key {fields['key']!r}",
            ", which went away" if answer.aborted else "",
            extra={"fields": fields},
        )  # fmt: skip
        if self._observe is not None:
            self._observe(handled)


class _Answer:
    """An answer under way: what has been sent of it, and whether anybody is still there."""

    def __init__(self, receive: Receive, send: Send, number: str) -> None:
        self._receive, self._send, self._number = receive, send, number
        self._began = time.perf_counter()
        self._ended: float | None = None
        self.status: int | None = None
        self.bytes = 0
        self.aborted = False

    async def receive(self) -> Message:
        """What the client says."""
        message = await self._receive()
        if message["type"] == "http.disconnect" and self._ended is None:
            self.aborted = True
        return message

    async def send(self, message: Message) -> None:
        """What is said to the client."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)[HEADER] = self._number
        await self._send(message)
        if message["type"] == "http.response.body":
            self.bytes += len(message.get("body", b""))
            if not message.get("more_body", False):
                self._ended = time.perf_counter()

    def outcome(self) -> int:
        """The status, also where no answer has begun."""
        return self.status or (CLIENT_GONE if self.aborted else 500)

    def seconds(self) -> float:
        """Until the last byte, or until now."""
        return (self._ended or time.perf_counter()) - self._began


def _id_of(scope: Scope) -> str:
    given = Headers(scope=scope).get(HEADER, "")
    return given if _SANE.fullmatch(given) else uuid4().hex


def _template(scope: Scope) -> str:
    """The route's path with names in the place of values: there are only so many of them."""
    return getattr(scope.get("route"), "path", None) or NO_ROUTE
