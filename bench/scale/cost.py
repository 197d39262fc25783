"""What 1,000, 10,000 and 100,000 hours cost, from figures that were measured, and what bounds each.

    python -m bench.scale.cost [--hours 1000 10000 100000] [--cores 2 16 64] [--minutes 30]

Nothing is measured here: `MEASURED` has the figures with where they stand, and beyond 5,000 h they are carried on as
straight lines. docs/scale.md has what this prints.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

HOURS = (1_000, 10_000, 100_000)
CORES = (2, 16, 64)
RECORDING_MINUTES = 30.0


@dataclass(frozen=True)
class Measured:
    """Figures, all of two cores of an Intel Xeon of the fourth generation but where another source is named.

    Searches are of one core, without the tokenizer's part: milliseconds at two sizes, and the line through them.
    """

    indexed_per_core: float = 172.0 / 2  # times real time; README, the slower of two tasks, fit included
    coordinator_s: float = 2.6  # processor time an hour of short recordings; bench.scale.cluster, on an AMD EPYC
    database_mb: float = 0.73  # an hour; docs/operations.md, the larger of 0.58 and 0.73, on an AMD EPYC
    codebook_mb: float = 3.0  # an archive; docs/operations.md: a few MB
    index_mb: float = 0.39  # an hour; docs/search.md, at 1,000 and at 5,000 h
    read_s: float = 0.9 / 16  # an hour: a local index made anew; docs/search.md, one trial over 16 h
    search_ms: tuple[tuple[float, float], tuple[float, float]] = ((1_000.0, 30.8), (5_000.0, 114.0))  # docs/search.md
    tokenizer_ms: float = 7.0  # a clip; docs/search.md
    segments: float = 867.0  # an hour of short recordings; docs/search.md, 867,321 in 1,000 h
    recording_bytes: float = 329.0  # a row with its indexes: 200,000 rows with names and paths of 30 to 60 letters
    process_mb: float = 370.0  # a worker of the service after its first searches; docs/operations.md


MEASURED = Measured()


@dataclass(frozen=True)
class Cost:
    """What so many hours cost. `index_mb` is both on the disk of each machine that searches and in its page cache."""

    hours: float
    core_hours: float
    database_mb: float
    segments: float
    recordings_mb: float
    index_mb: float
    read_s: float
    search_ms: float

    @property
    def searches_per_core_s(self) -> float:
        """That one core answers in a second."""
        return 1_000.0 / self.search_ms

    @property
    def memory_mb(self) -> float:
        """Of a machine that searches, all of its index in the page cache."""
        return self.index_mb + 2 * MEASURED.process_mb


def cost_of(hours: float, minutes: float = RECORDING_MINUTES, measured: Measured = MEASURED) -> Cost:
    """The model: all but a search grows with the hours, and a search by a line."""
    (low_h, low_ms), (high_h, high_ms) = measured.search_ms
    slope = (high_ms - low_ms) / (high_h - low_h)
    recordings = hours * 60.0 / minutes
    return Cost(
        hours=hours,
        core_hours=hours / measured.indexed_per_core,
        database_mb=hours * measured.database_mb + measured.codebook_mb,
        segments=hours * measured.segments,
        recordings_mb=recordings * measured.recording_bytes / 1e6,
        index_mb=hours * measured.index_mb,
        read_s=hours * measured.read_s,
        search_ms=low_ms + slope * (hours - low_h) + measured.tokenizer_ms,
    )


def hours_to_index(cost: Cost, cores: int, measured: Measured = MEASURED) -> float:
    """With so many cores of workers; one coordinator stores what they make, and that bounds it."""
    return cost.hours / min(cores * measured.indexed_per_core, 3_600.0 / measured.coordinator_s)


def bound_of(cost: Cost) -> str:
    """What one meets first, in words."""
    if cost.search_ms < 50.0:
        return "indexing: cores"
    if cost.memory_mb < 16_000.0:
        return "a search's own time: one core looks through all votes"
    return "memory of each machine that searches, and a search's own time"


def table(hours: Sequence[float], cores: Sequence[int], minutes: float) -> str:
    """As Markdown, a column for each size."""
    costs = [cost_of(one, minutes) for one in hours]
    rows: list[tuple[str, Iterable[str]]] = [
        ("core hours to index", (f"{cost.core_hours:,.0f}" for cost in costs)),
        *(
            (f"time to index, {count} cores", [_duration(hours_to_index(cost, count)) for cost in costs])
            for count in cores
        ),
        ("PostgreSQL, on disk", (_size(cost.database_mb) for cost in costs)),
        ("rows of `segment`, short recordings", (f"{cost.segments / 1e6:,.1f} million" for cost in costs)),
        (f"`recording`, {minutes:g} minutes each", (_size(cost.recordings_mb) for cost in costs)),
        ("local index, on disk and in the page cache", (_size(cost.index_mb) for cost in costs)),
        ("memory of a machine that searches, 2 workers", (_size(cost.memory_mb) for cost in costs)),
        ("a local index made anew", (_duration(cost.read_s / 3600.0) for cost in costs)),
        ("a search, p50, one core", (f"{cost.search_ms:,.0f} ms" for cost in costs)),
        ("searches a second, a core", (f"{cost.searches_per_core_s:,.1f}" for cost in costs)),
        ("what bounds it first", (bound_of(cost) for cost in costs)),
    ]
    lines = ["| | " + " | ".join(f"{one:,.0f} h" for one in hours) + " |", "|---" * (len(hours) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows]
    return "\n".join(lines)


def _duration(hours: float) -> str:
    if hours >= 48.0:
        return f"{hours / 24.0:,.1f} days"
    return f"{hours:,.1f} h" if hours >= 1.0 else f"{hours * 60.0:,.1f} min"


def _size(mb: float) -> str:
    return f"{mb / 1e3:,.1f} GB" if mb >= 1e3 else f"{mb:,.1f} MB"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, nargs="+", default=HOURS)
    parser.add_argument("--cores", type=int, nargs="+", default=CORES)
    parser.add_argument("--minutes", type=float, default=RECORDING_MINUTES, help="of a recording")
    options = parser.parse_args()
    print(table(options.hours, options.cores, options.minutes))


if __name__ == "__main__":
    main()
