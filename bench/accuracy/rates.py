"""Rate against quality: how many tokens a second each way to write them spends, and what MAP edit distance gets of it.

    python -m bench.accuracy.rates --speech SPEECH --tasks TASKS --pairalign FILE.onnx [FILE.onnx …] --out rates.png
        [--vq FILE.onnx] [--task english malayalam] [--json]

Lines: VQ with the codebook in its file at several prices of a token change (price 0 is plain run-length collapse;
above it, segments are those of duration-penalised dynamic programming, Kamper and van Niekerk 2021); byte-pair merges
of the VQ tokens, learned on the archive's own strings; the generated files, one for each rate of their knob; VQ with
the codebook of the first of those, where that is another; and, for comparison, VQ with a codebook that is fitted to the
archive, as the product has it. Isolated queries, one panel a task.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench.accuracy.archive import Recordings, read_queries, read_recordings
from bench.accuracy.embedders import Float32
from bench.accuracy.matchers import ask, matcher
from bench.accuracy.probes import mean_average_precision
from bench.accuracy.tokens import tokenize
from bench.accuracy.writers import Merged, learn_merges, of_file
from model.audio import Samples
from model.codebook import Codebook, codebook_size, fit_codebook
from model.tokenizer import DEFAULT_WEIGHTS
from service.evaluation.tasks import TaskQuery, read_task

PRICES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
MERGES = (250, 500, 1_000, 2_000, 4_000)
OWN_PRICES = (0.0, 0.1, 0.2, 0.3, 0.4)  # of the other two lines of VQ


@dataclass(frozen=True)
class Point:
    """Tokens a second of sound and MAP by edit distance, of one setting of a line."""

    line: str
    setting: str
    tokens_per_s: float
    map: float


def books(vq: Codebook, generated: Sequence[Path], recordings: Recordings) -> Iterator[tuple[str, str, Codebook]]:
    """Line, setting, and what writes the tokens."""
    for price in PRICES:
        yield "VQ, by price of a change", f"{price:g}", replace(vq, switch_penalty=price)
    strings = tokenize(recordings, None, given=vq)
    lines = [strings.collapsed[a:b].tolist() for a, b in zip(strings.offsets[:-1], strings.offsets[1:], strict=True)]
    merges = learn_merges(lines, max(MERGES), vq.size)
    for count in sorted({min(count, len(merges)) for count in MERGES}):  # no pair may be left that is there twice
        joined = Merged(vq.centroids, switch_penalty=vq.switch_penalty, merges=merges[:count])
        yield "VQ, byte-pair merges", f"{count:,}", joined
    for path in generated:
        yield "PairAlign, by rate", path.stem, of_file(path)[1]
    if generated and not np.array_equal((own := of_file(generated[0])[1]).centroids, vq.centroids):
        for price in OWN_PRICES:
            yield f"VQ with PairAlign's codebook, K {own.size:,}", f"{price:g}", Codebook(own.centroids, None, price)
    everything = recordings.embeddings
    fitted = fit_codebook(everything, codebook_size(len(everything)), parts=0)
    for price in OWN_PRICES:
        yield f"VQ fitted to the archive, K {fitted.size:,}", f"{price:g}", replace(fitted, switch_penalty=price)


def points(queries: Sequence[TaskQuery], recordings: Recordings, heard: list[Float32], vq: Codebook,
           generated: Sequence[Path]) -> Iterator[Point]:  # fmt: skip
    """All points of a task."""
    for line, setting, book in books(vq, generated, recordings):
        tokens = tokenize(recordings, None, given=book)
        answers = ask(matcher("edit", recordings, tokens), heard, recordings)
        rate = len(tokens.collapsed) / recordings.seconds
        found = mean_average_precision(queries, answers, recordings)
        yield Point(line, setting, round(rate, 2), round(found, 4))


def draw(of_task: dict[str, list[Point]], out: Path) -> None:
    """One panel a task, one line a way to write."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4 * len(of_task), 4.8), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(of_task)))
    for panel, (task, all_points) in zip(panels, of_task.items(), strict=True):
        for number, line in enumerate(dict.fromkeys(p.line for p in all_points)):
            chosen = sorted((p for p in all_points if p.line == line), key=lambda p: p.tokens_per_s)
            style = {
                "marker": "osD^v"[number % 5],
                "linestyle": "--" if "fitted" in line else "-",
                "color": f"C{number}",
            }
            panel.plot([p.tokens_per_s for p in chosen], [p.map for p in chosen], label=line, **style)
            for p in chosen:
                panel.annotate(
                    p.setting.rsplit("-", 1)[-1], (p.tokens_per_s, p.map), xytext=(0, 6), textcoords="offset points",
                    fontsize=7, color=f"C{number}", ha="center",
                )  # fmt: skip
        panel.set(title=f"{task}, isolated queries", xlabel="tokens a second", ylabel="MAP by edit distance alone")
        panel.set_ylim(bottom=0.0)
        panel.set_xlim(left=0.0)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8, loc="lower right")
    figure.savefig(out, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--vq", type=Path, default=DEFAULT_WEIGHTS)
    parser.add_argument("--pairalign", type=Path, nargs="*", default=[])
    parser.add_argument("--task", nargs="+", default=["english", "malayalam"])
    parser.add_argument("--out", type=Path, help="a PNG")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    tokenizer, vq = of_file(chosen.vq)

    def embed(sounds: list[Samples]) -> list[Float32]:
        return [tokenizer.embed(sound) for sound in sounds]

    of_task: dict[str, list[Point]] = {}
    if not chosen.json:
        print("| task | line | setting | tokens a second | MAP |\n|---|---|---|---|---|")
    for task in chosen.task:
        queries = read_task(chosen.tasks / f"{task}.json")
        recordings = read_recordings(chosen.speech / "dev" / task, embed, tokenizer.info.frame_seconds)
        heard = read_queries(queries, "isolated", embed, chosen.tasks, recordings, None)
        for point in points(queries, recordings, heard, vq, chosen.pairalign):
            of_task.setdefault(task, []).append(point)
            row = {"task": task, **vars(point)}
            print(json.dumps(row) if chosen.json else "| " + " | ".join(map(str, row.values())) + " |", flush=True)
    if chosen.out:
        draw(of_task, chosen.out)


if __name__ == "__main__":
    main()
