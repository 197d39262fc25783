"""Lines of text files that others made: UTF-8, not too long, numbered, without comments and blank ones."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from service.evaluation.errors import EvaluationError

LINE_BYTES = 1 << 20  # longest line: what has no line breaks is not read into memory
SHOWN_CHARACTERS = 40  # of what was found, in messages
_NUMBER = re.compile(r"\+?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,2})?", re.ASCII)


@dataclass(frozen=True)
class Line:
    """A line without its end; `number` begins at 1."""

    path: Path
    number: int
    text: str

    def error(self, kind: type[EvaluationError], what: str) -> EvaluationError:
        """An error that names the file and the line."""
        return kind(f"{self.path}, line {self.number}: {what}")


def read_lines(path: Path, kind: type[EvaluationError]) -> Iterator[Line]:
    """Lines that are neither blank nor comments (`;;`). Raises `kind` for what is no such file."""
    try:
        with path.open("rb") as file:
            number = 0
            while raw := file.readline(LINE_BYTES + 1):
                number += 1
                if len(raw) > LINE_BYTES:
                    raise Line(path, number, "").error(kind, f"longer than {LINE_BYTES:,} bytes")
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    raise Line(path, number, "").error(kind, f"not UTF-8: {error.reason} at {error.start}") from error
                if text.strip() and not text.lstrip().startswith(";;"):
                    yield Line(path, number, text)
    except OSError as error:
        raise kind(f"{path} cannot be read: {error.strerror or error}") from error


def seconds(text: str) -> float:
    """A number of seconds, not negative. Raises ValueError, which says what was found."""
    if _NUMBER.fullmatch(text) is None or not isfinite(number := float(text)):
        raise ValueError(f"{shown(text)} is no number of seconds")
    return number


def shown(text: str) -> str:
    """What was found, in quotes, cut where it is long."""
    return repr(text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…")
