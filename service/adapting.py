"""`sayagain adapt`: the tokenizer of an archive adapts to the archive's own sound, without labels."""

from __future__ import annotations

import hashlib
import shlex
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table
from sqlalchemy import Engine

from indexer import database, store
from model.tokenizer import Device, Tokenizer
from service import output, registry, retokenizing
from service.console import JsonOption, failing, print_line, stderr
from service.deps import open_database
from service.errors import EXIT_PARTLY, ArchiveNotReady, SayagainError
from service.settings import Settings

if TYPE_CHECKING:
    from model.training.adapt import AdaptReport

FOLDER = "adapt"
FOLDER_CHARACTERS = 60  # 240 bytes at most
MINUTES, ROUNDS = 20.0, 2

Outcome = Literal["not_helped", "helped", "applied", "in_force"]


class DeviceMissing(SayagainError):
    """The device that was asked for is not in this machine."""

    code = "device_missing"


def adapt(
    archive: Annotated[str, typer.Argument(help="name of the archive")],
    minutes: Annotated[
        float, typer.Option(min=0.0, help="budget of search and training, shared by the rounds")
    ] = MINUTES,
    rounds: Annotated[int, typer.Option(min=1, help="rounds of finding pairs and learning from them")] = ROUNDS,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; without it, that of the settings")] = None,
    work: Annotated[
        Path | None, typer.Option(help="where a run that was stopped goes on; without it, under the data folder")
    ] = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="if it helped, index the archive again with the adapted tokenizer")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="processes that decode and index")] = 2,
    as_json: JsonOption = False,
) -> None:
    """Adapt an archive's tokenizer to its own sound, without labels, and say whether it is more consistent for that."""
    with failing("train"), ExitStack() as closing:
        settings = Settings()
        chosen = _device(device or settings.device)
        engine = open_database(settings)
        closing.callback(engine.dispose)
        with database.connect(engine) as connection:
            info = store.get_archive(connection, archive)
            recordings = list(retokenizing.recordings_of(connection, info))
        if not recordings:
            raise ArchiveNotReady(f"nothing has been indexed into the archive {archive!r} yet", "archive")
        gone = retokenizing.missing(recordings)
        for recording in gone:
            stderr.print(f"missing: {output.printable(recording.name)}", markup=False, soft_wrap=True)
        work = work or settings.home_path / FOLDER / folder_name(archive)
        lost = {recording.id for recording in gone}
        files = [Path(recording.path) for recording in recordings if recording.id not in lost]
        report, outcome = _learned(settings, info, files, work, minutes, rounds, chosen, workers, engine)
        print_report(report)
        if apply and outcome == "helped":
            _apply(settings, engine, archive, work, chosen, workers)
            outcome = "applied"
        _say(outcome, archive, _again(archive, minutes, rounds, device, work, settings), apply)
        if as_json:
            print_line(report_json(report, archive, work, outcome, [recording.name for recording in gone]))
    raise typer.Exit(EXIT_PARTLY if gone else 0)


def folder_name(archive: str) -> str:
    """An archive's name as that of a folder: its own where that can be one."""
    clean = "".join(c if c.isalnum() or c in "-_ " else "_" for c in archive)[:FOLDER_CHARACTERS]
    if clean == archive and archive == archive.strip():
        return archive
    return f"{clean.strip()}-{hashlib.sha256(store.storable(archive).encode()).hexdigest()[:8]}"


def report_json(report: AdaptReport, archive: str, work: Path, outcome: Outcome, gone: list[str]) -> dict[str, Any]:
    """All of it as JSON."""
    from model.training.adapt import ADAPTED_FILE

    info = Tokenizer(work / ADAPTED_FILE, threads=1).info
    return {
        "archive": archive,
        **report.as_json(),
        "tokenizer": {
            "file": str(work / ADAPTED_FILE), "name": info.name, "version": info.version, "sha256": info.sha256,
        },
        "missing": gone,
        "applied": outcome in ("applied", "in_force"),
    }  # fmt: skip


def print_report(report: AdaptReport) -> None:
    """Before and after as a table on stderr."""
    table = Table(
        title=f"{report.recordings} recordings, {report.hours:.2f} h; on {report.held_out} held out:",
        title_justify="left",
    )
    for column in ("", "before", "after", "change"):
        table.add_column(column, justify="right" if column else "left")
    for name, before, after in (
        ("tokens in noise and in a room", report.before.tokens, report.after.tokens),
        ("same word or another", report.before.words, report.after.words),
    ):
        if before is None or after is None:
            table.add_row(name, "too few pairs", "", "")
        else:
            table.add_row(name, f"{before:.4f}", f"{after:.4f}", f"{after - before:+.4f}")
    stderr.print(table, markup=False)
    pairs = ", ".join(str(count) for count in report.pairs_per_round)
    stderr.print(f"pairs found and learned from, by round: {pairs}", markup=False)


def _learned(
    settings: Settings, info: store.ArchiveInfo, files: list[Path], work: Path, minutes: float, rounds: int,
    device: Device, workers: int, engine: Engine,
) -> tuple[AdaptReport, Outcome]:  # fmt: skip
    """What adapting came to, now or in an earlier run that ended in the tokenizer that the archive has."""
    import torch

    from model.training import adapt as adaptation

    adapted = work / adaptation.ADAPTED_FILE
    done = adapted.exists() and (work / adaptation.REPORT_FILE).exists()
    if done and Tokenizer(adapted, threads=1).info.sha256 == info.tokenizer_sha256:
        return adaptation.load_report(work), "in_force"
    tokenizer = registry.Registry(settings.home_path, settings.tokenizer, threads=1).find(info.tokenizer_sha256)
    if tokenizer is None:
        raise store.TokenizerMismatch(
            f"the tokenizer that the archive {info.name!r} was made with ({info.tokenizer_name}, "
            f"{info.tokenizer_sha256[:12]}) is not at hand: name it with SAYAGAIN_TOKENIZER"
        )
    engine.dispose()  # no connection is held for as long as this takes, or inherited by processes that decode
    wanted = adaptation.AdaptSettings(minutes=minutes, rounds=rounds)
    report = adaptation.adapt(files, tokenizer.path, work, wanted, torch.device(device), workers)
    return report, "helped" if report.helped else "not_helped"


def _apply(settings: Settings, engine: Engine, archive: str, work: Path, device: Device, workers: int) -> None:
    """Keep the adapted tokenizer where searches find it, and make the archive anew with it."""
    from model.training.adapt import ADAPTED_FILE

    kept = registry.keep(settings.home_path, work / ADAPTED_FILE, settings.tokenizer)
    with output.IndexProgress(stderr) as progress:
        done = retokenizing.retokenize(engine, archive, kept, workers=workers, device=device, progress=progress)
    output.print_failures(done, stderr)
    output.print_index_report(done, stderr)


def _say(outcome: Outcome, archive: str, again: str, apply: bool) -> None:
    if outcome == "in_force":
        text = f"the archive {archive} has the adapted tokenizer already"
    elif outcome == "applied":
        text = f"the archive {archive} is now indexed with the adapted tokenizer"
    elif outcome == "helped":
        text = f"it helped; to index the archive again with the adapted tokenizer: {again}"
    else:
        text = "it did not help" + (": the archive stays as it was" if apply else "")
    stderr.print(text, markup=False, soft_wrap=True)


def _again(archive: str, minutes: float, rounds: int, device: str | None, work: Path, settings: Settings) -> str:
    """The command that applies what this one found."""
    words = ["sayagain", "adapt", archive, "--apply"]
    if minutes != MINUTES:
        words += ["--minutes", f"{minutes:g}"]
    if rounds != ROUNDS:
        words += ["--rounds", str(rounds)]
    if device is not None:
        words += ["--device", device]
    if work != settings.home_path / FOLDER / folder_name(archive):
        words += ["--work", str(work)]
    return shlex.join(words)


def _device(name: str) -> Device:
    """Raises DeviceMissing."""
    import torch

    if name not in ("cpu", "cuda"):
        raise DeviceMissing(f"the device {name!r} is not known: cpu or cuda", "device")
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceMissing("there is no CUDA device that torch can use", "device")
    return "cuda" if name == "cuda" else "cpu"
