"""Which paths of dynamic time warping rank best: mean average precision by file with other steps and other means.

    python -m bench.accuracy.paths --speech SPEECH --tasks TASKS [--task english malayalam]

All rescore the same candidates; the first row is what the product does, before the second look.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from bench.accuracy.development import Archive, by_windows, indexed, opened, parser, print_table
from service.evaluation.tasks import TaskQuery
from service.search import cascade
from service.search.query import Query
from service.search.rescoring import Float32
from service.search.stretches import Stretches

DEPTH = 2_000

Int64 = npt.NDArray[np.int64]
Uint16 = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Rule:
    """From one query frame to the next the recording goes on by one of the steps 0 to `longest`.

    `cost` is taken off for every step but one of 1; `rests` is how often in a row it may stand still.
    """

    name: str
    longest: int
    cost: float = 0.0
    rests: int = 1_000


RULES = (
    Rule("steps 0 to 2, mean over query frames (ships)", 2),
    Rule("steps 0 and 1", 1),
    Rule("steps 0 to 3", 3),
    Rule("steps 0 to 2, at most one 0 in a row", 2, rests=1),
    Rule("steps 0 to 2, at most two 0 in a row", 2, rests=2),
    Rule("steps 1 and 2", 2, rests=0),
    Rule("steps 0 to 2, .02 off for 0 and 2", 2, cost=0.02),
    Rule("steps 0 to 2, .05 off for 0 and 2", 2, cost=0.05),
    Rule("steps 0 to 2, .1 off for 0 and 2", 2, cost=0.1),
)


@numba.njit(nogil=True, cache=True)
def by_rule(table: Float32, ids: Uint16, low: Int64, high: Int64, longest: int, cost: float, rests: int) -> Float32:
    """The best mean over query frames in each window: float32 [windows]."""
    frames = len(table)
    out = np.full(len(low), -1e9, np.float32)
    kinds = min(rests, 3) + 1  # how long a path has stood still, as far as that matters
    for window in range(len(low)):
        width = high[window] - low[window]
        old = np.full((width, kinds), -1e9)
        for j in range(width):
            old[j, 0] = table[0, ids[low[window] + j]]
        for i in range(1, frames):
            new = np.full((width, kinds), -1e9)
            for j in range(width):
                here = table[i, ids[low[window] + j]]
                for step in range(1, min(longest, j) + 1):
                    taken = here - (cost if step > 1 else 0.0)
                    for kind in range(kinds):
                        new[j, 0] = max(new[j, 0], old[j - step, kind] + taken)
                if rests > 3:
                    for kind in range(kinds):
                        new[j, 0] = max(new[j, 0], old[j, kind] + here - cost)
                else:
                    for kind in range(1, kinds):
                        new[j, kind] = max(new[j, kind], old[j, kind - 1] + here - cost)
            old = new
        out[window] = old.max() / frames
    return out


@numba.njit(nogil=True, cache=True)
def by_path_mean(table: Float32, ids: Uint16, low: Int64, high: Int64, level: float) -> Float32:
    """Symmetric steps (either goes on, or both), the sum of cosines over `level` divided by the cells of the path."""
    frames = len(table)
    out = np.full(len(low), -1e9, np.float32)
    for window in range(len(low)):
        width = high[window] - low[window]
        total, cells = np.full((2, width), -1e9), np.ones((2, width))
        for i in range(frames):
            row, before = i % 2, (i + 1) % 2
            for j in range(width):
                best, count = (0.0, 0.0) if i == 0 else (total[before, j], cells[before, j])
                if j and i and total[before, j - 1] > best:
                    best, count = total[before, j - 1], cells[before, j - 1]
                if j and i and total[row, j - 1] > best:
                    best, count = total[row, j - 1], cells[row, j - 1]
                total[row, j] = best + table[i, ids[low[window] + j]] - level
                cells[row, j] = count + 1.0
        last = (frames - 1) % 2
        for j in range(width):
            out[window] = max(out[window], total[last, j] / cells[last, j])
    return out


def orders(archive: Archive, task: TaskQuery, query: Query) -> Iterator[tuple[str, Stretches, Float32]]:
    """Each rule's name, windows and scores."""
    setting = archive.setting
    windows = cascade.windows_of(query, setting.view, archive.alive(task), setting.codebook.size, DEPTH, False)
    table = query.tables.similarity
    for r in RULES:
        yield (
            r.name,
            *by_windows(
                setting.view,
                windows,
                lambda ids, some, r=r: by_rule(table, ids, some.low, some.high, r.longest, r.cost, r.rests),
            ),
        )
    for level in (0.2, 0.4, 0.6):
        yield (
            f"symmetric steps, mean over the path of cosines over {level:g}",
            *by_windows(
                setting.view,
                windows,
                lambda ids, some, level=level: by_path_mean(table, ids, some.low, some.high, level),
            ),
        )


def main() -> None:
    """Index, rescore, print."""
    arguments = parser(str(__doc__)).parse_args()
    columns: list[dict[str, list[float]]] = []
    for task in arguments.task:
        with indexed(task, arguments) as backend:
            archive = opened(backend, task, arguments)
            found: dict[str, list[float]] = {}
            for one, query in zip(archive.tasks, archive.queries, strict=True):
                for name, places, scores in orders(archive, one, query):
                    found.setdefault(name, []).append(archive.precision(one, places, scores))
        columns.append(found)
    print_table("paths", arguments.task, columns)


if __name__ == "__main__":
    main()
