"""What all formats are made of: marked stretches of recordings, told apart into tiers without overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Mark:
    """A hit: seconds [start_s, end_s) of the recording of that name, which has `duration_s`, for a term's label."""

    recording: str
    duration_s: float
    start_s: float
    end_s: float
    score: float
    label: str
    rank: int

    @property
    def text(self) -> str:
        """What an editor shows: the label with its score."""
        return f"{self.label} {self.score:.3f}"


def by_recording(marks: Sequence[Mark]) -> dict[str, list[Mark]]:
    """Marks of each recording in the order of time, in the order of the recordings' names."""
    out: dict[str, list[Mark]] = {}
    for mark in sorted(marks, key=lambda mark: (mark.recording, mark.start_s, mark.end_s, mark.rank)):
        out.setdefault(mark.recording, []).append(mark)
    return out


def tiers(marks: Sequence[Mark]) -> dict[str, list[Mark]]:
    """Marks of one recording in the order of time, in tiers of each label; those that overlap go into further ones."""
    out: dict[str, list[Mark]] = {}
    for mark in marks:
        number = 1
        while True:
            name = mark.label if number == 1 else f"{mark.label} ({number})"
            tier = out.setdefault(name, [])
            if not tier or tier[-1].end_s <= mark.start_s:
                tier.append(mark)
                break
            number += 1
    return out


def within(marks: Sequence[Mark]) -> list[Mark]:
    """Marks as they lie within their recordings: a last frame may reach a little beyond the end."""
    kept = []
    for mark in marks:
        start_s, end_s = max(0.0, mark.start_s), min(mark.end_s, mark.duration_s)
        if start_s < end_s:
            kept.append(Mark(mark.recording, mark.duration_s, start_s, end_s, mark.score, mark.label, mark.rank))
    return kept
