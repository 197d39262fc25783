"""Audacity's label tracks: start, end and label of each line, between tabs."""

from __future__ import annotations

from collections.abc import Sequence

from service.exports.marks import Mark


def write_labels(marks: Sequence[Mark]) -> str:
    """The label track of one recording."""
    return "".join(f"{mark.start_s:.6f}\t{mark.end_s:.6f}\t{_plain(mark.text)}\n" for mark in marks)


def _plain(text: str) -> str:
    """In one line, without tabs."""
    return " ".join(text.split())
