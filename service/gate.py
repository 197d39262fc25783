"""The gate before all of /v1: keys, sizes and numbers are looked at before a request's body is read.

FastAPI reads a whole form, into memory and onto the disk, before the first dependency is asked. Nothing of a stranger's
body gets that far.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import anyio
from anyio import to_thread
from fastapi import APIRouter, Depends, params
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as Connection

from service.access import key_of, needed_by, require
from service.deps import Backend
from service.errors import RequestTimeout, SayagainError, TooBusy, UploadTooLarge
from service.faults import KNOWN_ERRORS, answer_to
from service.keys import Scope

LIMIT = "max_request_mb"  # the setting that bounds bodies where a route says nothing
THREADS = 4  # that look up keys: requests at work, which fill their own threads, let nobody wait for a 401
SLOWEST_BYTES_S = 1_000  # a body that comes in drops is cut off like one that does not come
RETRY_S = 1.0


@dataclass(frozen=True)
class _BodyUpTo:
    setting: str

    async def declare(self) -> None:
        """The dependency, which does nothing: the gate reads it from the route."""


def body_up_to(setting: str) -> Any:
    """A route's dependency: its requests may be as large as that setting says, in megabytes."""
    return Depends(_BodyUpTo(setting).declare)


def _limit_of(dependencies: Iterable[params.Depends]) -> str:
    declared = (getattr(dependency.dependency, "__self__", None) for dependency in dependencies)
    return next((limit.setting for limit in declared if isinstance(limit, _BodyUpTo)), LIMIT)


@dataclass(frozen=True)
class _Terms:
    """What a route asks of a request."""

    route: APIRoute
    scope: Scope
    limit: str


class Gate:
    """Lets through what a key allows, up to a size and to a number at a time; only requests to the routers' routes.

    A refusal is answered at once, and closes the connection where a body would follow. What meets no route goes on, to
    be answered 404 or 405.
    """

    def __init__(self, app: ASGIApp, routers: Sequence[APIRouter]) -> None:
        """`routers` are those of the application, in its order: included ones cannot be found in it."""
        self._app = app
        self._terms = [
            _Terms(route, needed_by(route.dependencies), _limit_of(route.dependencies))
            for router in routers
            for route in router.routes
            if isinstance(route, APIRoute)
        ]
        self._threads = anyio.CapacityLimiter(THREADS)
        self._inside = 0

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        """One connection."""
        terms = self._terms_of(scope)
        if terms is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = terms.route  # for the log: what is refused has a route too
        backend: Backend = scope["app"].state.backend
        if self._inside >= backend.settings.max_in_flight:
            busy = TooBusy(f"{self._inside} requests are being answered, which is all that there may be", RETRY_S)
            await _refuse(busy, scope, receive, send)
            return
        self._inside += 1
        try:
            await self._admit(terms, backend, scope, receive, send)
        finally:
            self._inside -= 1

    def _terms_of(self, scope: Connection) -> _Terms | None:
        """Those of the route that the application will choose, None where it chooses none."""
        if scope["type"] != "http":
            return None
        return next((terms for terms in self._terms if terms.route.matches(scope)[0] is Match.FULL), None)

    async def _admit(self, terms: _Terms, backend: Backend, scope: Connection, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        try:
            key = await to_thread.run_sync(key_of, headers.get("authorization"), backend, limiter=self._threads)
            scope.setdefault("state", {})["key"] = key
            require(key, terms.scope)
            body = _Body(receive, send, getattr(backend.settings, terms.limit), backend.settings.body_timeout_s)
            body.expect(headers.get("content-length", ""))
        except KNOWN_ERRORS as error:
            await _refuse(error, scope, receive, send)
            return
        try:
            await self._app(scope, body.receive, body.send)
        except Exception:
            if body.fault is None:
                raise
        if body.fault is not None and not body.answered:
            await _refuse(body.fault, scope, receive, send)


class _Body:
    """A body as it comes: cut off where it grows too large or too slow, and then nothing else is answered."""

    def __init__(self, receive: Receive, send: Send, limit_mb: float, timeout_s: float) -> None:
        self._receive, self._send = receive, send
        self._limit_mb, self._timeout_s = limit_mb, timeout_s
        self._began = time.monotonic()
        self._bytes = 0
        self._ended = False
        self.fault: SayagainError | None = None
        self.answered = False

    def expect(self, length: str) -> None:
        """The length that is announced. Raises UploadTooLarge."""
        if length.isdecimal() and int(length) > self._limit_mb * 1e6:
            raise self._too_large(int(length))

    async def receive(self) -> Message:
        """The next part; from a fault on, as if the client had gone."""
        if self._ended and self.fault is None:
            return await self._receive()  # that it goes, however long it stays
        part = None if self.fault is not None else await self._part()
        return {"type": "http.disconnect"} if part is None else part

    async def _part(self) -> Message | None:
        """None where it does not come in time, or is too much."""
        part: Message | None = None
        with anyio.move_on_after(self._left_s()):
            part = await self._receive()
        if part is None:
            self.fault = RequestTimeout(f"the rest of the request did not come within {self._timeout_s:g} s")
            return None
        self._bytes += len(part.get("body", b""))
        self._ended = not part.get("more_body", False)
        if self._bytes > self._limit_mb * 1e6:
            self.fault = self._too_large(self._bytes)
            return None
        return part

    async def send(self, message: Message) -> None:
        """What is answered, as long as nothing is wrong with the body."""
        if self.fault is None or self.answered:
            self.answered = True
            await self._send(message)

    def _left_s(self) -> float:
        """How long the next part may take."""
        all_s = self._timeout_s + self._bytes / SLOWEST_BYTES_S - (time.monotonic() - self._began)
        return max(0.0, min(self._timeout_s, all_s))

    def _too_large(self, size: int) -> UploadTooLarge:
        return UploadTooLarge(f"{size / 1e6:.1f} MB are sent, where {self._limit_mb:g} MB are allowed")


async def _refuse(error: BaseException, scope: Connection, receive: Receive, send: Send) -> None:
    response = answer_to(error)
    headers = Headers(scope=scope)
    if "transfer-encoding" in headers or headers.get("content-length", "0") != "0":
        response.headers["Connection"] = "close"  # the server need not read what follows
    await response(scope, receive, send)
