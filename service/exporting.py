"""`search --export`: all hits of a run of the command as a table or as label files."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from service.errors import SayagainError
from service.exports.formats import Format, files, is_table, table
from service.exports.marks import Mark
from service.schemas import SearchOut


class ExportUnwritable(SayagainError):
    """The file or the folder of an export cannot be written."""

    code = "export_unwritable"


def marks_of(label: str, answer: SearchOut) -> list[Mark]:
    """The hits of an answer under a label."""
    return [
        Mark(hit.recording.name, hit.recording.duration, hit.start, hit.end, hit.score, label, hit.rank)
        for hit in answer.hits
    ]


def write(kind: Format, marks: Sequence[Mark], out: Path | None) -> list[Path]:
    """Write a table to `out`, or to stdout where there is none; label files below the folder `out`. What was written.

    Raises ExportUnwritable.
    """
    if is_table(kind) and out is None:
        sys.stdout.write(table(kind, marks))
        return []
    assert out is not None
    written = []
    try:
        texts = [(out, table(kind, marks))] if is_table(kind) else [(out / path, t) for path, t in files(kind, marks)]
        for path, text in texts:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")
            written.append(path)
    except OSError as error:
        raise ExportUnwritable(f"cannot write {error.filename or out}: {error.strerror or error}") from error
    return written
