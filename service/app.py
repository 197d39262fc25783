"""The FastAPI application: routes, and one shape for every error."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from threading import Thread

from anyio import to_thread
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.access import READ
from service.deps import Backend
from service.faults import KNOWN_ERRORS, answer_to, error_response, is_full
from service.gate import Gate
from service.jobs.runner import Runner
from service.metrics import Metrics
from service.requestlog import RequestLog
from service.routes import archives, batch, exports, health, jobs, page, recordings, refine, search, sounds, watches
from service.routes import metrics as metrics_route
from service.routes.responses import errors
from service.search.warming import warm_once
from service.settings import Settings

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
# What a page of another origin may send and read, where the settings name that origin.
CORS_SENT, CORS_READ = ["Authorization", "Content-Type", "X-Request-ID"], ["X-Request-ID", "Retry-After"]
CORS_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]


class Service(FastAPI):
    """The application inside of what is told of every answer, those to faults of ours too."""

    def build_middleware_stack(self) -> ASGIApp:
        """All layers; an added middleware would be inside of the one that answers unexpected errors."""
        metrics: Metrics = self.state.metrics
        return RequestLog(SecurityHeaders(super().build_middleware_stack()), metrics.request)


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application; database and tokenizer are opened when it starts, not when it is made."""
    settings = settings or Settings()
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        backend = Backend.open(settings, metrics.search)
        to_thread.current_default_thread_limiter().total_tokens = settings.max_threads
        app.state.backend = backend
        warming = Thread(target=warm_once, args=(backend.search.tokenizer,), name="sayagain-warming")
        warming.start()  # requests are answered meanwhile
        try:
            with Runner(backend) if settings.run_jobs else nullcontext():
                yield
        finally:
            warming.join()
            backend.close()

    app = Service(title="sayagain", summary="Search for spoken words by example.", version="1", lifespan=lifespan)
    app.state.metrics = metrics
    rooms = (search, refine, batch, archives, recordings, sounds, exports, jobs, watches)
    gated = [module.router for module in rooms] + [metrics_route.router] * (not settings.metrics_open)
    for router in gated:
        app.include_router(router, dependencies=[READ], responses=errors(400, 401, 403, 408, 413, 429))
    for router in [health.router, page.router] + [metrics_route.router] * settings.metrics_open:
        app.include_router(router)
    app.mount("/page", page.files)
    app.add_middleware(Gate, routers=gated)
    if settings.cors_origins:  # outside of the gate: what a browser asks beforehand has no key
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=CORS_METHODS,
            allow_headers=CORS_SENT,
            expose_headers=CORS_READ,
        )
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


async def _on_error(request: Request, error: Exception) -> JSONResponse:
    return answer_to(error)


async def _on_invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"][1:]) or None
    return error_response(422, "invalid_request", f"{field or 'request'}: {first['msg']}", field)


async def _on_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    cause = error.__cause__
    if cause is not None and is_full(cause):  # while the body was written down: FastAPI calls that a bad body
        return answer_to(cause)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    return error_response(error.status_code, code, str(error.detail))
