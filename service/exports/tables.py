"""Hits as tables, a line each: CSV for spreadsheets, JSON lines for programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence

from service.exports.marks import Mark

COLUMNS = ("label", "rank", "recording", "start", "end", "score")


def _row(mark: Mark) -> dict[str, str | int | float]:
    values = (mark.label, mark.rank, mark.recording, round(mark.start_s, 3), round(mark.end_s, 3), round(mark.score, 6))
    return dict(zip(COLUMNS, values, strict=True))


def write_csv(marks: Sequence[Mark]) -> str:
    """Comma-separated values by RFC 4180, with a header."""
    held = io.StringIO(newline="")
    table = csv.DictWriter(held, COLUMNS)
    table.writeheader()
    table.writerows(_row(mark) for mark in marks)
    return held.getvalue()


def write_jsonl(marks: Sequence[Mark]) -> str:
    """A JSON object a line."""
    return "".join(json.dumps(_row(mark), ensure_ascii=False) + "\n" for mark in marks)
