"""The `sayagain` command: stdout is data, stderr is log and progress.

Exit codes: 0 done, 1 failed, 2 bad usage, 3 done with some files failed (listed on stderr).
"""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service import (
    adapting,
    checking,
    clustering,
    configuring,
    evaluating,
    exporting,
    keymaking,
    learning,
    listening,
    output,
    refitting,
    registry,
    serving,
    tokenizers,
    working,
)
from service.console import JsonOption, Rescore, RescoreOption, failing, print_line, stderr
from service.errors import CLIP_ERRORS, EXIT_FAILED, EXIT_PARTLY, code_of, message_of
from service.exports.formats import Format, is_table
from service.exports.marks import Mark
from service.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from model.tokenizer import Device
    from service.clips import Clip
    from service.schemas import SearchOut

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
app.add_typer(tokenizers.app, name="tokenizer")
app.add_typer(keymaking.app, name="keys")
app.add_typer(clustering.app, name="cluster")
app.command()(learning.train)
app.command()(learning.train_pairalign)
app.command()(learning.export)
app.command()(adapting.adapt)
app.command()(refitting.refit)
app.command()(checking.check)
app.command()(listening.listen)
app.command()(evaluating.evaluate)
app.command()(serving.serve)
app.command()(configuring.config)
app.command()(working.work)

AT_ONCE = 32  # clips of a search that share the work

ArchiveOption = Annotated[str, typer.Option("--archive", "-a", help="name of the archive")]


class DeviceKind(StrEnum):
    """What a tokenizer runs on."""

    CPU = "cpu"
    CUDA = "cuda"


class CodebookKind(StrEnum):
    """Whose codebook a new archive gets."""

    ARCHIVE = "archive"
    TOKENIZER = "tokenizer"


@app.command()
def index(
    paths: Annotated[list[str], typer.Argument(help="folders or files of audio; URLs that fsspec reads, like s3://")],
    archive: ArchiveOption = "default",
    codebook: Annotated[
        CodebookKind | None, typer.Option(help="archive: fitted to this audio; tokenizer: the tokenizer's own")
    ] = None,
    codes: Annotated[
        bool, typer.Option(help="store six or eight bytes a frame as well, for a better order of hits")
    ] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="remove recordings whose file lay in PATHS and is gone")
    ] = False,
    tokenizer: Annotated[
        str | None, typer.Option(help="fast, a name that `sayagain tokenizer list` shows, or an ONNX file")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="worker processes")] = 2,
    device: Annotated[
        DeviceKind | None, typer.Option(help="what the workers' tokenizers run on; without it, that of the settings")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="a Dask scheduler, tcp://host:8786, whose workers do the work instead")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Index recordings: new and changed ones are tokenized and stored, the rest is skipped."""
    from indexer import database, pipeline

    with failing():
        settings = Settings()
        engine = database.open_engine(settings.home_path, settings.url)
        database.migrate(engine)
        file = registry.file_for(engine, archive, tokenizer, settings)
        chosen = _device(device.value if device else settings.device, file)
        with output.IndexProgress(stderr) as progress:
            report = pipeline.index_archive(
                engine, paths, archive, file,
                workers=workers, codebook=codebook.value if codebook else None, codes=codes,
                device=chosen, progress=progress, prune=prune, scheduler=scheduler,
            )  # fmt: skip
        output.print_failures(report, stderr)
        if as_json:
            print_line(report.as_json())
        else:
            output.print_index_report(report, stderr)
        _prepare(engine, archive, settings)  # last: what was done is told, whatever becomes of this
    raise typer.Exit(EXIT_PARTLY if report.failed else 0)


def _device(wanted: Device, tokenizer: Path) -> Device:
    """The device that is wanted, where the tokenizer can be run on it; else the CPU, and a line that says so."""
    from model.tokenizer import Tokenizer

    if wanted == "cpu" or Tokenizer(tokenizer, threads=1, device=wanted).device == wanted:
        return wanted
    stderr.print(
        "no CUDA device that ONNX Runtime can use (pip install 'sayagain[gpu]'): on the CPU",
        soft_wrap=True,
        markup=False,
    )
    return "cpu"


def _prepare(engine: Engine, archive: str, settings: Settings) -> None:
    """Bring the local index up to date, so that the first search need not wait for it."""
    from indexer import database
    from service.search import localindex
    from service.search.localindex import FOLDER, LocalIndex

    with database.connect(engine) as connection:
        localindex.prepare(LocalIndex(settings.home_path / FOLDER), connection, archive)


@app.command()
def search(
    clips: Annotated[list[Path] | None, typer.Argument(help="audio of the term, one query per clip")] = None,
    archive: ArchiveOption = "default",
    recording: Annotated[
        str | None, typer.Option(help="in place of clips: a recording of the archive, with --start and --end")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000)] = 20,
    min_score: Annotated[float, typer.Option(min=0.0, max=1.0)] = 0.0,
    start: Annotated[float | None, typer.Option(min=0.0, help="seconds; the term begins here in the clip")] = None,
    end: Annotated[float | None, typer.Option(min=0.0, help="seconds; the term ends here in the clip")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="look at every segment")] = False,
    rescore: RescoreOption = Rescore.CODES,
    export: Annotated[Format | None, typer.Option(help="write the hits in this format, in place of a list")] = None,
    out: Annotated[
        Path | None, typer.Option(help="where the export goes: a file for csv and jsonl, else a folder")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find every place where the term of each clip is said, or that of a stretch of an indexed recording."""
    from service.deps import Backend
    from service.search.answer import Request
    from service.search.query import Reference
    from service.views import search_out

    if recording is not None and (clips or start is None or end is None):
        raise typer.BadParameter("goes with --start and --end, and without clips", param_hint="--recording")
    if recording is None and not clips:
        raise typer.BadParameter("a clip is needed, or --recording with --start and --end", param_hint="CLIPS")
    if (export is None and out is not None) or (export is not None and out is None and not is_table(export)):
        raise typer.BadParameter("goes with --export, and is needed for label files", param_hint="--out")
    if export is not None and as_json:
        raise typer.BadParameter("does not go with --json", param_hint="--export")
    failed = 0
    marks: list[Mark] = []

    def answered(label: str, about: dict[str, str], answer: SearchOut) -> None:
        if export is not None:
            marks.extend(exporting.marks_of(label, answer))
        elif as_json:
            print_line({**about, **answer.model_dump(mode="json")})
        else:
            output.print_hits(next(iter(about.values())), answer)

    with failing():
        backend = Backend.open(Settings())
        deep = rescore is Rescore.DEEP
        ask = partial(Request, archive=archive, limit=limit, min_score=min_score, exact=exact, deep=deep)
        if recording is not None and start is not None and end is not None:
            request = ask([Reference(recording, start, end)])
            answered(f"{start:g}-{end:g} s", {"recording": recording}, search_out(backend.search.search(request)))
        clips = clips or []
        for first in range(0, len(clips), AT_ONCE):
            some = clips[first : first + AT_ONCE]
            heard = [_read(clip, backend.settings.max_query_s, start, end) for clip in some]
            asked = [ask([c]) for c in heard if not isinstance(c, Exception)]
            found = iter(backend.search.search_many(asked) if asked else [])
            for clip, one in zip(some, heard, strict=True):
                answer = one if isinstance(one, Exception) else next(found)
                if isinstance(answer, Exception):
                    failed += 1
                    code, message = code_of(answer), message_of(answer)
                    stderr.print(f"sayagain: {clip}: {code}: {message}", markup=False, soft_wrap=True)
                    if as_json:
                        print_line({"file": str(clip), "error": {"code": code, "message": message}})
                else:
                    answered(clip.stem, {"file": str(clip)}, search_out(answer))
        backend.close()
        if export is not None:
            for path in exporting.write(export, marks, out):
                stderr.print(f"wrote {output.printable(str(path))}", markup=False, soft_wrap=True)
    raise typer.Exit(0 if not failed else EXIT_FAILED if failed == len(clips) else EXIT_PARTLY)


def _read(clip: Path, longest_s: float, start_s: float | None, end_s: float | None) -> Clip | Exception:
    """A clip, or what is wrong with it."""
    from service.clips import read_clip

    try:
        return read_clip(clip, longest_s, start_s, end_s)
    except CLIP_ERRORS as error:
        return error


@app.command()
def archives(as_json: JsonOption = False) -> None:
    """List the archives."""
    from indexer import database, store
    from service.deps import open_database
    from service.schemas import ArchivesOut
    from service.views import archive_out

    with failing():
        engine = open_database(Settings())
        with database.connect(engine) as connection:
            listed = ArchivesOut(archives=[archive_out(a) for a in store.list_archives(connection)])
        if as_json:
            print_line(listed.model_dump(mode="json"))
        else:
            output.print_archives(listed)


@app.command()
def delete(
    archive: Annotated[str, typer.Argument(help="name of the archive")],
    recording: Annotated[str | None, typer.Option(help="name of one recording; without it, all of the archive")] = None,
) -> None:
    """Delete an archive, or one recording of it; audio files are not touched."""
    from indexer import database, store
    from indexer.recordings import delete_recording
    from service.deps import open_database

    with failing():
        engine = open_database(Settings())
        with database.connect(engine) as connection, connection.begin():
            if recording is None:
                store.delete_archive(connection, archive)
            else:
                delete_recording(connection, store.get_archive(connection, archive).id, recording)
        stderr.print(f"deleted {archive if recording is None else recording}", markup=False)


@app.command()
def migrate() -> None:
    """Bring the database's schema up to date."""
    from indexer import database

    with failing():
        settings = Settings()
        database.migrate(database.open_engine(settings.home_path, settings.url))
        stderr.print("the schema is current")


def main() -> None:
    """Entry point of the `sayagain` command."""
    app()
