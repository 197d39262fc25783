"""Run development tasks through the command line and print one table in Markdown.

    python -m bench.accuracy --speech SPEECH --tasks TASKS [--task english …] [--baseline] [--depth 200]
        [--tokenizer FILE.onnx] [--codes] [--reports FOLDER] [--deep FILE.onnx]

SPEECH holds dev/<task>/ with the recordings, TASKS holds <task>.json with its clips. With
--reports, the reliability diagram, curves and detections of isolated queries are written to FOLDER/<task>.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.accuracy import mfcc
from service.errors import EXIT_PARTLY

ROW = "| {task} | {what} | {map} | {mrr} | {p10} | {mtwv} | {atwv} | {ece} |"
HEAD = "| task | what | MAP | MRR | P@10 | MTWV (beta, at) | ATWV | ECE |\n|---|---|---|---|---|---|---|---|"


def sayagain(home: str, *words: str, **settings: str) -> dict[str, Any]:
    """One run of the command with its JSON."""
    environment = {**os.environ, "SAYAGAIN_HOME": home, **settings}
    command = [sys.executable, "-m", "service", *words, "--json"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, EXIT_PARTLY):  # single clips may fail: the table says how many
        done.check_returncode()
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def row(task: str, what: str, f: dict[str, Any]) -> str:
    """One line of the table."""
    return ROW.format(
        task=task, what=what, map=f"{f['map']:.4f}", mrr=f"{f['mrr']:.3f}", p10=f"{f['p10']:.3f}",
        mtwv=f"{f['mtwv']:.3f} ({f['beta']:g}, {f['threshold']:.2f})",
        atwv=f"{f['atwv']:.3f} at {f['atwv_threshold']:.2f}", ece="-" if f["ece"] is None else f"{f['ece']:.3f}",
    )  # fmt: skip


def measure(task: str, arguments: argparse.Namespace) -> list[str]:
    """All rows of one task."""
    file, folder = arguments.tasks / f"{task}.json", arguments.speech / "dev" / task
    rows = []
    if arguments.baseline:
        for name, f in mfcc.evaluate(file, folder).items():
            rows.append(row(task, f"MFCC subsequence DTW, {name}", asdict(f)))
    with tempfile.TemporaryDirectory() as home:
        options = ["--codes"] if arguments.codes else []
        options += ["--tokenizer", arguments.tokenizer] if arguments.tokenizer else []
        report = sayagain(home, "index", str(folder), "--archive", task, *options)
        reported = ["--report", str(arguments.reports / task)] if arguments.reports else []
        runs: list[tuple[str, list[str], dict[str, str]]] = [("isolated", reported, {})]
        has_times = all(q["source"][1] is not None for q in json.loads(file.read_text())["queries"])
        if has_times:
            runs.append(("in its sentence", ["--in-context", "--folder", str(folder)], {}))
        runs += [
            (f"isolated, {depth} candidates", [], {"SAYAGAIN_CANDIDATE_DEPTH": str(depth)}) for depth in arguments.depth
        ]
        for hits in arguments.deep_hits if arguments.deep else ():
            deep = {"SAYAGAIN_DEEP_TOKENIZER": arguments.deep, "SAYAGAIN_DEEP_HITS": str(hits)}
            unbounded = {"SAYAGAIN_DEEP_BUDGET_S": "3600"}
            runs.append((f"isolated, {hits} hits rescored deep", ["--rescore", "deep"], deep | unbounded))
        speeds = []
        for what, words, settings in runs:
            result = sayagain(home, "evaluate", str(file), "--archive", task, *words, **settings)
            for name, f in result["figures"].items():
                rows.append(row(task, f"{what}, {name}", f))
            speeds.append(f"{what}: {result['median_ms']} ms, {result['failed']} clips failed")
    rows.append(
        f"\n{task}: {report['audio_s'] / 3600:.2f} h, {report['tokens_per_s']:.1f} tokens a second of speech, "
        f"codebook {report['codebook']}, {report['bytes_per_hour'] / 1e6:.2f} MB an hour on disk, "
        f"indexed at {report['times_real_time']:.0f} times real time with the codebook's fit; median a query: "
        + "; ".join(speeds)
    )
    return rows


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--task", nargs="+", default=["english", "malayalam"])
    parser.add_argument("--baseline", action="store_true", help="measure MFCC subsequence DTW as well")
    parser.add_argument("--depth", type=int, nargs="*", default=[200], help="also with so few candidates")
    parser.add_argument("--codes", action="store_true", help="index with codes beside the tokens")
    parser.add_argument("--reports", type=Path, help="write each task's report, with its plots, below this folder")
    parser.add_argument("--deep", help="also rescored with this ONNX file, however long that takes")
    parser.add_argument(
        "--deep-hits", type=int, nargs="+", default=[10, 50, 200], help="so many first hits of each query"
    )
    parser.add_argument("--tokenizer", help="an ONNX file other than the default")
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}\n\n{HEAD}")
    for task in arguments.task:
        for line in measure(task, arguments):
            print(line, flush=True)


if __name__ == "__main__":
    main()
