"""Queries a second, one by one and in batches of several sizes, over the same clips and archive in one process.

    python -m bench.speed.batch --speech SPEECH --tasks TASKS [--task english]

The ratios to the first row are what counts.
"""

from __future__ import annotations

import time

import numpy as np

from bench.accuracy.development import indexed, parser
from service.clips import read_clip
from service.evaluation.tasks import read_task
from service.search.answer import Request

SIZES = (1, 2, 8, 32, 100)
ROUNDS = 3
QUERIES = 100


def main() -> None:
    """Index, search in turn, print."""
    arguments = parser(str(__doc__)).parse_args()
    for task in arguments.task:
        with indexed(task, arguments) as backend:
            queries = read_task(arguments.tasks / f"{task}.json")[:QUERIES]
            requests = [Request([read_clip(arguments.tasks / q.clip, 60.0)], task) for q in queries]
            backend.search.search_many(requests)
            taken: dict[int, list[float]] = {size: [] for size in SIZES}
            for _ in range(ROUNDS):
                for size in SIZES:
                    began = time.perf_counter()
                    for first in range(0, len(requests), size):
                        backend.search.search_many(requests[first : first + size])
                    taken[size].append(time.perf_counter() - began)
        print(f"\n{task}, {len(requests)} queries\n\n| clips a batch | queries a second | ratio |\n|---|---|---|")
        for size, seconds in taken.items():
            ratio = np.median(np.array(taken[1]) / np.array(seconds))
            print(f"| {size} | {len(requests) / np.median(seconds):.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
