"""What codes beside the tokens earn, kept for each frame or once for each run of a token: MAP by file of DTW alone.

    python -m bench.accuracy.codes --speech SPEECH --tasks TASKS [--task english malayalam]

A run keeps the code of its middle frame. All rows rescore the same 2,000 candidates.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from bench.accuracy.development import Archive, by_windows, indexed, opened, parser, print_table
from service.search import cascade, rescoring
from service.search.candidates import Windows
from service.search.query import Query
from service.search.rescoring import Float32, Tables

DEPTH = 2_000
Uint16 = npt.NDArray[np.uint16]
Uint8 = npt.NDArray[np.uint8]


def once_a_run(ids: Uint16, pq: Uint8) -> Uint8:
    """Each frame's codes replaced by those of the middle frame of its run."""
    starts = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))
    ends = np.append(starts[1:], len(ids))
    return np.repeat(pq[(starts + ends - 1) // 2], ends - starts, axis=0)


def scored(archive: Archive, windows: Windows, tables: Tables, codes: dict[int, Uint8]) -> Float32:
    """The best similarity in each window, by these tables and these codes of each part."""
    out = np.zeros(len(windows), np.float32)
    for part, pq in codes.items():
        those = np.flatnonzero(windows.part == part)
        ids = archive.setting.view.parts[part].shard.ids
        m = rescoring.match_regions(tables, ids, pq, windows.low[those], windows.high[those])
        out[those[m.region]] = m.similarity
    return out


def main() -> None:
    """Index with codes, rescore, print."""
    arguments = parser(str(__doc__)).parse_args()
    columns: list[dict[str, list[float]]] = []
    for task in arguments.task:
        with indexed(task, arguments, codes=True) as backend:
            archive = opened(backend, task, arguments)
            parts = [part.shard for part in archive.setting.view.parts]
            kept: dict[str, Callable[[Query], tuple[Tables, dict[int, Uint8]]]] = {}
            none = {n: np.zeros((len(s.ids), 0), np.uint8) for n, s in enumerate(parts)}
            each = {n: np.asarray(s.pq) for n, s in enumerate(parts)}
            runs = {n: once_a_run(np.asarray(s.ids), np.asarray(s.pq)) for n, s in enumerate(parts)}
            kept["centroids alone (ships)"] = lambda q, c=none: (
                rescoring.make_tables(q.embeddings, q.codebook, residual=False),
                c,
            )  # type: ignore[misc]
            kept["and codes of every frame (`--codes`)"] = lambda q, c=each: (q.tables, c)  # type: ignore[misc]
            kept["and codes once a token run"] = lambda q, c=runs: (q.tables, c)  # type: ignore[misc]
            found: dict[str, list[float]] = {}
            for one, query in zip(archive.tasks, archive.queries, strict=True):
                size = archive.setting.codebook.size
                windows = cascade.windows_of(query, archive.setting.view, archive.alive(one), size, DEPTH, False)
                places, _ = by_windows(archive.setting.view, windows, lambda _, some: some.votes.astype(np.float32))
                for name, of in kept.items():
                    tables, codes = of(query)
                    scores = scored(archive, windows, tables, codes)
                    found.setdefault(name, []).append(archive.precision(one, places, scores))
        columns.append(found)
    print_table("stored", arguments.task, columns)


if __name__ == "__main__":
    main()
