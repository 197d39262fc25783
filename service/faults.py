"""Errors as HTTP answers: one shape for all, wherever on its way a request is refused."""

from __future__ import annotations

import errno
import logging
import math

from fastapi.responses import JSONResponse
from sqlalchemy.exc import SQLAlchemyError

from indexer import database, store
from model.audio import AudioError
from model.tokenizer import TokenizerError
from service.errors import STATUS, SayagainError, StorageFull, TooManyRequests, code_of, message_of
from service.schemas import ErrorBody, ErrorOut

KNOWN_ERRORS = (SayagainError, AudioError, TokenizerError, store.StoreError, database.DatabaseError, SQLAlchemyError)

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

log = logging.getLogger("sayagain")


def answer_to(error: BaseException) -> JSONResponse:
    """The answer to a request that has met this error; a fault of ours is logged with its trace, and not told."""
    error = StorageFull("there is no room for what was sent") if is_full(error) else database.translate(error)
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


def is_full(error: BaseException) -> bool:
    """Whether the disk has no room, or may not be given more."""
    return isinstance(error, OSError) and error.errno in FULL


def error_response(status: int, code: str, message: str, field: str | None = None) -> JSONResponse:
    """An error as JSON."""
    body = ErrorOut(error=ErrorBody(code=code, message=message, field=field))
    return JSONResponse(body.model_dump(exclude_none=True), status)
