"""What all commands share: stderr for people, stdout for data, and one clear line for each failure."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated

import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError
from rich.console import Console

from service.errors import EXIT_FAILED, INTERNAL, code_of, message_of
from service.settings import PREFIX, Settings

stderr = Console(stderr=True, highlight=False)

JsonOption = Annotated[bool, typer.Option("--json", help="machine-readable output")]


class Rescore(StrEnum):
    """What the first hits are compared by in the end."""

    CODES = "codes"
    DEEP = "deep"


RescoreOption = Annotated[
    Rescore, typer.Option(help="deep: read the sound of the first hits again, with another tokenizer")
]


def fail(code: str, message: str) -> None:
    """Say so in one line and end with exit code 1."""
    stderr.print(f"sayagain: {code}: {message}", markup=False, soft_wrap=True)
    raise typer.Exit(EXIT_FAILED)


@contextmanager
def failing(extra: str | None = None) -> Iterator[None]:
    """One clear line and exit code 1 for every error that is not a fault of ours.

    `extra` names the optional dependencies of a command: a package that cannot be imported is then one of them.
    """
    from indexer import database

    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except KeyboardInterrupt:
        stderr.print("sayagain: interrupted", markup=False)
        raise typer.Exit(EXIT_FAILED) from None
    except ImportError as missing:
        if extra is None:
            raise
        fail(f"{extra}_extra_missing", f"{missing.name} is needed: pip install 'sayagain[{extra}]'")
    except SettingsError as wrong:
        fail("settings_invalid", message_of(wrong))
    except ValidationError as wrong:
        if wrong.title != Settings.__name__:
            raise
        told = [
            f"{PREFIX}{'.'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in wrong.errors(include_input=False)
        ]
        fail("settings_invalid", "; ".join(told))
    except Exception as raw:
        error = database.translate(raw)
        if code_of(error) == INTERNAL:
            raise
        fail(code_of(error), message_of(error))


def print_line(value: object) -> None:
    """One JSON object on stdout."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()
