"""What the command line shows a person: progress, tables, lists of failures."""

from __future__ import annotations

import shlex
from types import TracebackType

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from indexer.integrity import Checked
from indexer.pipeline import IndexReport, Progressed
from service.evaluation.figures import Figures
from service.schemas import ArchivesOut, SearchOut


class IndexProgress:
    """A bar over audio hours, with speed and files failed; call it with each `Progressed`."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%  {task.fields[hours]}  {task.fields[speed]}  {task.fields[failed]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._task = self._progress.add_task("index", total=None, hours="", speed="", failed="")

    def __enter__(self) -> IndexProgress:
        return self  # the bar appears with the first news: what fails before that is one line

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, now: Progressed) -> None:
        """Show where the run is."""
        self._progress.start()
        self._progress.update(
            self._task,
            description=now.stage,
            total=now.total_s or None,
            completed=now.done_s,
            hours=f"{now.done_s / 3600:.2f}/{now.total_s / 3600:.2f} h",
            speed=f"{now.done_s / now.wall_s:.0f}x real time" if now.wall_s > 0 and now.done_s else "",
            failed=f"{now.failed} failed" if now.failed else "",
        )


def print_failures(report: IndexReport, console: Console) -> None:
    """Each file that failed, by name and reason."""
    for failure in report.failed:
        console.print(
            f"failed: {printable(failure.name)}: {failure.code}: {failure.message}", markup=False, soft_wrap=True
        )


def print_index_report(report: IndexReport, console: Console) -> None:
    """What a run did, in a few lines."""
    console.print(
        f"{report.indexed} indexed, {report.unchanged} unchanged, {report.moved} moved, "
        + (f"{len(report.removed)} removed, " if report.removed else "")
        + f"{len(report.failed)} failed; "
        f"{report.audio_s / 3600:.2f} h in {report.wall_s:.1f} s ({report.times_real_time:.0f}x real time), "
        f"{report.tokens_per_s:.1f} tokens a second of speech, "
        f"codebook of {report.codebook_size} ({report.codebook_kind}), "
        f"{report.bytes_per_hour / 1e6:.2f} MB an hour",
        markup=False,
        soft_wrap=True,
    )
    command = f"sayagain refit {shlex.quote(report.archive)}"
    if report.outgrown:
        console.print(
            f"the archive has outgrown its codebook: a new one finds more ({command})", markup=False, soft_wrap=True
        )
    elif report.drifted:
        console.print(
            "what came now fits the archive's codebook less well than what it was made for: "
            f"one that is made for all of it may find more ({command})",
            markup=False,
            soft_wrap=True,
        )


def print_checked(checked: Checked, console: Console) -> None:
    """What was found in an archive: each problem, what became of the files, and a line for all of it."""
    for problem in checked.problems:
        about = f"{printable(problem.recording)}: " if problem.recording is not None else ""
        console.print(f"damaged: {about}{problem.code}: {problem.message}", markup=False, soft_wrap=True)
    for what, names in (("missing", checked.missing), ("changed", checked.changed)):
        for name in names:
            console.print(f"{what}: {printable(name)}", markup=False, soft_wrap=True)
    state = "well" if not checked.problems else f"{len(checked.problems)} problems"
    console.print(
        f"{printable(checked.archive)}: {state}; {checked.recordings} recordings, {checked.segments} segments, "
        f"{len(checked.missing)} files missing, {len(checked.changed)} changed; digest {checked.digest[:16]}",
        markup=False,
        soft_wrap=True,
    )


def printable(name: str) -> str:
    """A name on one line, whatever is in it."""
    return name.encode("unicode_escape", "surrogateescape").decode("ascii") if not name.isprintable() else name


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss.cc or m:ss.cc."""
    minutes, rest = divmod(seconds, 60.0)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02d}:{rest:05.2f}" if hours else f"{minutes}:{rest:05.2f}"


def print_hits(clip: str, answer: SearchOut) -> None:
    """Hits of one clip as a table on stdout."""
    table = Table(
        title=f"{printable(clip)}: {answer.query.duration:.2f} s, {answer.query.tokens} tokens", title_justify="left"
    )
    for name, justify in (
        ("#", "right"),
        ("recording", "left"),
        ("start", "right"),
        ("end", "right"),
        ("score", "right"),
    ):
        table.add_column(name, justify="right" if justify == "right" else "left", overflow="fold")
    for hit in answer.hits:
        table.add_row(
            str(hit.rank), printable(hit.recording.name), clock(hit.start), clock(hit.end), f"{hit.score:.3f}"
        )
    console = Console(highlight=False)
    console.print(table, markup=False)
    console.print(
        f"searched {answer.searched.recordings} recordings, {answer.searched.hours:.2f} h, "
        f"in {answer.timing_ms.total:.0f} ms"
    )


def print_archives(listed: ArchivesOut) -> None:
    """Archives as a table on stdout."""
    table = Table()
    for name in ("archive", "recordings", "hours", "tokenizer", "codebook", "MB"):
        table.add_column(name, overflow="fold")
    for archive in listed.archives:
        codebook = f"{archive.codebook_size} ({archive.codebook})" if archive.codebook else "none yet"
        table.add_row(
            printable(archive.name), str(archive.recordings), f"{archive.hours:.2f}", archive.tokenizer, codebook,
            f"{archive.bytes / 1e6:.1f}",
        )  # fmt: skip
    Console(highlight=False).print(table, markup=False)


def print_figures(figures: dict[str, Figures]) -> None:
    """Figures of an evaluation as a table on stdout."""
    table = Table(box=SIMPLE, padding=0, show_edge=False)  # eleven columns on eighty characters
    for name in ("", "queries", "MAP", "MRR", "P@10", "MTWV", "at", "ATWV", "at", "beta", "ECE"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, f in figures.items():
        table.add_row(
            name, str(f.queries), f"{f.map:.4f}", f"{f.mrr:.3f}", f"{f.p10:.3f}", f"{f.mtwv:.3f}", f"{f.threshold:.3f}",
            f"{f.atwv:.3f}", f"{f.atwv_threshold:.3g}", f"{f.beta:g}", "-" if f.ece is None else f"{f.ece:.3f}",
        )  # fmt: skip
    Console(highlight=False).print(table)
