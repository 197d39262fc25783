"""What is logged and in which form: lines for people, or JSON."""

from __future__ import annotations

import json
import logging
import logging.config
from datetime import UTC, datetime
from typing import Any

from service.requestlog import request_id
from service.settings import Settings

OURS = ("sayagain", "service", "indexer", "model")


class TextFormatter(logging.Formatter):
    """`time LEVEL logger [request] message`; a trace follows in lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """A line, or several where there is a trace."""
        number = request_id.get()
        where = record.name if number is None else f"{record.name} [{number}]"
        lines = [f"{_time(record)} {record.levelname} {where} {record.getMessage()}"]
        return "\n".join([*lines, *filter(None, [_exception(self, record)])])


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, pid; request_id and exception where there is one.

    A record's `fields` (a dict in `extra`) are in it under their own names.
    """

    def format(self, record: logging.LogRecord) -> str:
        """A line."""
        about: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
        }
        number, exception = request_id.get(), _exception(self, record)
        if number is not None:
            about["request_id"] = number
        if exception:
            about["exception"] = exception
        return json.dumps({**about, **getattr(record, "fields", {}), **about}, default=str)


FORMATTERS = {"text": TextFormatter, "json": JsonFormatter}


def configure(settings: Settings) -> None:
    """Log to stderr in the form and from the level of the settings, the HTTP server's own lines too.

    The server's access log is off: `service.requestlog` tells more. Warnings of Python become log lines.
    """
    level = settings.log_level.upper()
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"chosen": {"()": FORMATTERS[settings.log_format]}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "chosen"}},
            "root": {"handlers": ["stderr"], "level": "WARNING"},
            "loggers": {
                **{name: {"level": level} for name in (*OURS, "uvicorn", "uvicorn.error")},
                "uvicorn.access": {"level": "CRITICAL", "propagate": False},
            },
        }
    )
    logging.captureWarnings(True)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def _exception(formatter: logging.Formatter, record: logging.LogRecord) -> str | None:
    """The trace as text, with the stack where that was asked for."""
    trace = formatter.formatException(record.exc_info) if record.exc_info and record.exc_info[0] else None
    return "\n".join(filter(None, [trace, record.stack_info])) or None
