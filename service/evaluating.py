"""The `evaluate` command: how good the answers are, on a task or on a query list with its references."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from service import output
from service.console import JsonOption, Rescore, RescoreOption, failing, print_line, stderr
from service.errors import EXIT_FAILED, EXIT_PARTLY
from service.settings import Settings


def evaluate(
    task: Annotated[Path | None, typer.Argument(help="task file (JSON)")] = None,
    queries: Annotated[
        Path | None, typer.Option(help="in place of a task: a query list, with --references (docs/evaluation.md)")
    ] = None,
    references: Annotated[Path | None, typer.Option(help="where words are said: a .ctm or .rttm file")] = None,
    archive: Annotated[str, typer.Option("--archive", "-a", help="name of the archive")] = "default",
    threshold: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="score that ATWV answers from; else what beta implies")
    ] = None,
    beta: Annotated[
        float | None, typer.Option(min=0.0, help="what a false alarm costs; else 12.49 by file, 999.9 located")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="folder for figures.json, plots, kwslist.xml and detections.tsv")
    ] = None,
    plots: Annotated[bool, typer.Option("--plots/--no-plots", help="plots in the report (extra `evaluate`)")] = True,
    in_context: Annotated[
        bool, typer.Option("--in-context", help="query with the stretch of the source recording")
    ] = False,
    folder: Annotated[Path | None, typer.Option(help="the archive's folder, for --in-context")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="look at every segment")] = False,
    rescore: RescoreOption = Rescore.CODES,
    as_json: JsonOption = False,
) -> None:
    """Run a task, or a query list, against an indexed archive and print MAP, MRR, P@10, MTWV, ATWV and calibration."""
    from service import tasks
    from service.deps import Backend
    from service.evaluation.report import Report

    asked = task or queries
    if asked is None or (task is not None and queries is not None):
        raise typer.BadParameter("a task file or --queries is needed, and not both", param_hint="TASK")
    if (queries is None) != (references is None):
        raise typer.BadParameter("go together", param_hint="--queries and --references")
    if beta is not None and not math.isfinite(beta):
        raise typer.BadParameter("a number is needed", param_hint="--beta")
    if in_context and (folder is None or queries is not None):
        raise typer.BadParameter("needs a task and --folder", param_hint="--in-context")
    with failing():
        written = None if report is None else Report(report, plots)
        backend = Backend.open(Settings())
        questions = tasks.read_questions(backend, asked, archive, references, stderr)
        result = tasks.run(
            backend, questions, stderr,
            context_folder=folder if in_context else None, exact=exact, deep=rescore is Rescore.DEEP,
            threshold=threshold, beta=beta,
        )  # fmt: skip
        backend.close()
        if as_json:
            print_line(result.as_json())
        else:
            output.print_figures(result.figures)
        if written is not None:  # last: what was measured is not lost with a full disk
            result.report(written, questions)
    failed = result.failed
    raise typer.Exit(0 if not failed else EXIT_FAILED if failed == len(questions.queries) else EXIT_PARTLY)
