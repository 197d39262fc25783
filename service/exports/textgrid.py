"""Praat's TextGrids, in the long text format: a tier of intervals for each label, silence as empty intervals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from service.exports.marks import Mark, tiers, within

LEAST_S = 1e-6  # an interval that is shorter is none


def write_textgrid(marks: Sequence[Mark]) -> str:
    """The TextGrid of one recording, whose marks are in the order of time."""
    duration_s = marks[0].duration_s
    named = tiers(within(marks))
    lines = [
        'File type = "ooTextFile"',
        'Object class = "TextGrid"',
        "",
        "xmin = 0",
        f"xmax = {duration_s!r}",
        "tiers? <exists>" if named else "tiers? <absent>",
    ]
    if named:
        lines += [f"size = {len(named)}", "item []:"]
    for number, (name, tier) in enumerate(named.items(), 1):
        intervals = list(_intervals(tier, duration_s))
        lines += [
            f"    item [{number}]:",
            '        class = "IntervalTier"',
            f"        name = {_quoted(name)}",
            "        xmin = 0",
            f"        xmax = {duration_s!r}",
            f"        intervals: size = {len(intervals)}",
        ]
        for at, (start_s, end_s, text) in enumerate(intervals, 1):
            lines += [
                f"        intervals [{at}]:",
                f"            xmin = {start_s!r}",
                f"            xmax = {end_s!r}",
                f"            text = {_quoted(text)}",
            ]
    return "\n".join(lines) + "\n"


def _intervals(tier: Sequence[Mark], duration_s: float) -> Iterator[tuple[float, float, str]]:
    """Start, end and text of intervals that leave no gap."""
    at = 0.0
    for mark in tier:
        if mark.start_s - at > LEAST_S:
            yield at, mark.start_s, ""
        yield (mark.start_s if mark.start_s - at > LEAST_S else at), mark.end_s, mark.text
        at = mark.end_s
    if duration_s - at > LEAST_S:
        yield at, duration_s, ""


def _quoted(text: str) -> str:
    """Between quotes, which are doubled inside; in one line."""
    return '"' + " ".join(text.split()).replace('"', '""') + '"'
