"""The FastAPI application: routes, and one shape for every error."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import SQLAlchemyError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from indexer import database, store
from model.audio import AudioError
from model.tokenizer import TokenizerError
from service.access import READ
from service.deps import Backend
from service.errors import STATUS, SayagainError, TooManyRequests, code_of, message_of
from service.requestlog import RequestLog
from service.routes import archives, batch, exports, health, page, recordings, refine, search, sounds
from service.routes.responses import errors
from service.schemas import ErrorBody, ErrorOut
from service.settings import Settings

KNOWN_ERRORS = (SayagainError, AudioError, TokenizerError, store.StoreError, database.DatabaseError, SQLAlchemyError)

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}

log = logging.getLogger("sayagain")


class Service(FastAPI):
    """The application inside of what is told of every answer, those to faults of ours too."""

    def build_middleware_stack(self) -> ASGIApp:
        """All layers; an added middleware would be inside of the one that answers unexpected errors."""
        return RequestLog(SecurityHeaders(super().build_middleware_stack()))


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application; database and tokenizer are opened when it starts, not when it is made."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        backend = Backend.open(settings or Settings())
        app.state.backend = backend
        try:
            yield
        finally:
            backend.close()

    app = Service(title="sayagain", summary="Search for spoken words by example.", version="1", lifespan=lifespan)
    for module in (search, refine, batch, archives, recordings, sounds, exports):
        app.include_router(module.router, dependencies=[READ], responses=errors(401, 403, 429))
    for module in (health, page):
        app.include_router(module.router)
    app.mount("/page", page.files)
    for known in KNOWN_ERRORS:
        app.add_exception_handler(known, _on_error)
    # A fault of ours is answered in the same shape, and logged with its trace.
    app.add_exception_handler(Exception, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    return app


class SecurityHeaders:
    """Headers that keep browsers from guessing types, from framing, and from telling others where they were."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, with_headers)


def _answer(error: BaseException) -> JSONResponse:
    code = code_of(error)
    status = STATUS.get(code, 500)
    if status == 500:
        log.error("unexpected error", exc_info=error)
        return error_response(500, code, "something went wrong inside; the log says what")
    response = error_response(status, code, message_of(error), getattr(error, "field", None))
    if isinstance(error, TooManyRequests):
        response.headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


async def _on_error(request: Request, error: Exception) -> JSONResponse:
    return _answer(database.translate(error))


async def _on_invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"][1:]) or None
    return error_response(422, "invalid_request", f"{field or 'request'}: {first['msg']}", field)


async def _on_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    return error_response(error.status_code, code, str(error.detail))


def error_response(status: int, code: str, message: str, field: str | None = None) -> JSONResponse:
    """An error as JSON."""
    body = ErrorOut(error=ErrorBody(code=code, message=message, field=field))
    return JSONResponse(body.model_dump(exclude_none=True), status)
