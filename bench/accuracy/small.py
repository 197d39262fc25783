"""From how much speech on an archive is better served by a codebook of its own than by the tokenizer's.

    python -m bench.accuracy.small --speech SPEECH --tasks TASKS [--task english …] [--seconds 60 180 600]

Prints a table in Markdown: the whole cascade, asked of random parts of an archive that are so long (three of each),
each indexed with both kinds of codebook. Queries of which nothing is left to find do not count.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from bench.accuracy.__main__ import sayagain
from bench.accuracy.development import parser
from model import audio

KINDS = ("archive", "tokenizer")
SEEDS = 3
FIGURES = ("map", "p10", "atwv", "mtwv")


def drawn(folder: Path, seconds: float, seed: int) -> list[Path]:
    """Files in random order until they are so long."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    out: list[Path] = []
    held_s = 0.0
    for at in np.random.default_rng(seed).permutation(len(paths)):
        if held_s >= seconds:
            break
        held_s += audio.duration_s(paths[at]) or 0.0
        out.append(paths[at])
    return out


def cut_task(task: Path, names: set[str], to: Path) -> int:
    """The task about these recordings alone, with its clips by absolute paths; how many queries are left."""
    whole = json.loads(task.read_text())
    queries = []
    for query in whole["queries"]:
        relevant = [place for place in query["relevant"] if place[0] in names]
        if relevant:
            queries.append(query | {"clip": str((task.parent / query["clip"]).absolute()), "relevant": relevant})
    to.write_text(json.dumps(whole | {"queries": queries}))
    return len(queries)


def measured(task: str, seconds: float, seed: int, arguments: Any) -> dict[str, dict[str, float]]:
    """Figures of both kinds of codebook on one part of an archive."""
    folder = arguments.speech / "dev" / task
    with tempfile.TemporaryDirectory() as home:
        part = Path(home, "part")
        names = set()
        for path in drawn(folder, seconds, seed):
            link = part / path.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.absolute())
            names.add(link.relative_to(part).as_posix())
        cut = Path(home, "task.json")
        asked = cut_task(arguments.tasks / f"{task}.json", names, cut)
        out: dict[str, dict[str, float]] = {}
        for kind in KINDS:
            report = sayagain(home, "index", str(part), "--archive", kind, "--codebook", kind)
            figures = sayagain(home, "evaluate", str(cut), "--archive", kind)["figures"]["file/all"]
            out[kind] = {"queries": asked, "size": report["codebook"]["size"]} | {
                name: figures[name] for name in FIGURES
            }
        return out


def main() -> None:
    """The table."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--seconds", nargs="+", type=float, default=[60.0, 180.0, 600.0])
    given = arguments.parse_args()
    print(
        "| task | seconds | codebook | K | queries | MAP | P@10 | ATWV | MTWV |\n|---|---|---|---|---|---|---|---|---|"
    )
    for task in given.task:
        for seconds in given.seconds:
            runs = [measured(task, seconds, seed, given) for seed in range(SEEDS)]
            for kind in KINDS:
                mean = {key: np.mean([run[kind][key] for run in runs]) for key in runs[0][kind]}
                print(
                    f"| {task} | {seconds:.0f} | {kind}'s | {mean['size']:.0f} | {mean['queries']:.0f} "
                    f"| {' | '.join(f'{mean[name]:.3f}' for name in FIGURES)} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
