"""The `sayagain` command: stdout is data, stderr is log and progress.

Exit codes: 0 done, 1 failed, 2 bad usage, 3 done with some files failed (listed on stderr).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from model.tokenizer import Tokenizer
from service import output
from service.errors import CLIP_ERRORS, EXIT_FAILED, EXIT_PARTLY, INTERNAL, code_of, message_of
from service.settings import Settings

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
stderr = Console(stderr=True, highlight=False)

ArchiveOption = Annotated[str, typer.Option("--archive", "-a", help="name of the archive")]
JsonOption = Annotated[bool, typer.Option("--json", help="machine-readable output")]


class CodebookKind(StrEnum):
    """Whose codebook a new archive gets."""

    ARCHIVE = "archive"
    TOKENIZER = "tokenizer"


@contextmanager
def _failing() -> Iterator[None]:
    """One clear line and exit code 1 for every error that is not a fault of ours."""
    from indexer import database

    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except KeyboardInterrupt:
        stderr.print("sayagain: interrupted", markup=False)
        raise typer.Exit(EXIT_FAILED) from None
    except Exception as raw:
        error = database.translate(raw)
        if code_of(error) == INTERNAL:
            raise
        stderr.print(f"sayagain: {code_of(error)}: {message_of(error)}", markup=False, soft_wrap=True)
        raise typer.Exit(EXIT_FAILED) from None


@app.command()
def index(
    paths: Annotated[list[Path], typer.Argument(help="folders or files of audio")],
    archive: ArchiveOption = "default",
    codebook: Annotated[
        CodebookKind | None, typer.Option(help="archive: fitted to this audio; tokenizer: the tokenizer's own")
    ] = None,
    codes: Annotated[
        bool, typer.Option(help="store eight bytes a frame as well, for a slightly better order of hits")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="worker processes")] = 2,
    as_json: JsonOption = False,
) -> None:
    """Index recordings: new and changed ones are tokenized and stored, the rest is skipped."""
    from indexer import database, pipeline

    with _failing():
        settings = Settings()
        engine = database.open_engine(settings.home_path, settings.url)
        database.migrate(engine)
        with output.IndexProgress(stderr) as progress:
            report = pipeline.index_archive(
                engine, paths, archive, settings.tokenizer,
                workers=workers, codebook=codebook.value if codebook else None, codes=codes,
                device=settings.device, progress=progress,
            )  # fmt: skip
        output.print_failures(report, stderr)
        if as_json:
            print_line(output.index_json(report))
        else:
            output.print_index_report(report, stderr)
    raise typer.Exit(EXIT_PARTLY if report.failed else 0)


@app.command()
def search(
    clips: Annotated[list[Path], typer.Argument(help="audio of the term, one query per clip")],
    archive: ArchiveOption = "default",
    limit: Annotated[int, typer.Option(min=1, max=1_000)] = 20,
    min_score: Annotated[float, typer.Option(min=0.0, max=1.0)] = 0.0,
    start: Annotated[float | None, typer.Option(min=0.0, help="seconds; the term begins here in the clip")] = None,
    end: Annotated[float | None, typer.Option(min=0.0, help="seconds; the term ends here in the clip")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="look at every segment")] = False,
    as_json: JsonOption = False,
) -> None:
    """Find every place where the term of each clip is said."""
    from service.clips import read_clip
    from service.deps import Backend
    from service.search.engine import Request
    from service.views import search_out

    failed = 0
    with _failing():
        backend = Backend.open(Settings())
        for clip in clips:
            try:
                heard = read_clip(clip, backend.settings.max_query_s, start, end)
                found = backend.search.search(Request([heard], archive, limit, min_score, exact))
                answer = search_out(found, backend.search.tokenizer.info.name)
            except CLIP_ERRORS as error:
                failed += 1
                stderr.print(f"sayagain: {clip}: {code_of(error)}: {message_of(error)}", markup=False, soft_wrap=True)
                if as_json:
                    print_line({"file": str(clip), "error": {"code": code_of(error), "message": message_of(error)}})
                continue
            if as_json:
                print_line({"file": str(clip), **answer.model_dump(mode="json")})
            else:
                output.print_hits(str(clip), answer)
        backend.close()
    raise typer.Exit(0 if not failed else EXIT_FAILED if failed == len(clips) else EXIT_PARTLY)


@app.command()
def archives(as_json: JsonOption = False) -> None:
    """List the archives."""
    from indexer import database, store
    from service.deps import open_database
    from service.schemas import ArchivesOut
    from service.views import archive_out

    with _failing():
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
    from service.deps import open_database

    with _failing():
        engine = open_database(Settings())
        with database.connect(engine) as connection, connection.begin():
            if recording is None:
                store.delete_archive(connection, archive)
            else:
                store.delete_recording(connection, store.get_archive(connection, archive).id, recording)
        stderr.print(f"deleted {archive if recording is None else recording}", markup=False)


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535)] = 8_000,
) -> None:
    """Answer HTTP requests."""
    import uvicorn

    from service.app import create_app

    with _failing():
        uvicorn.run(create_app(Settings()), host=host, port=port, log_level="info")


@app.command()
def migrate() -> None:
    """Bring the database's schema up to date."""
    from indexer import database

    with _failing():
        settings = Settings()
        database.migrate(database.open_engine(settings.home_path, settings.url))
        stderr.print("the schema is current")


@app.command()
def train(
    folder: Annotated[Path, typer.Argument(help="recordings to learn from", exists=True, file_okay=False)],
    work: Annotated[Path, typer.Option(help="where checkpoints, features and the log are kept")],
    teacher: Annotated[str, typer.Option(help="the teacher's name, or its safetensors file")] = "openai/whisper-base",
    manifest: Annotated[Path | None, typer.Option(help="TSV of recordings with splits; without it, every file")] = None,
    minutes: Annotated[float, typer.Option(min=0.0, help="budget of training; it resumes until that is spent")] = 120.0,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    workers: Annotated[int, typer.Option(min=1, help="processes that decode")] = 2,
    as_json: JsonOption = False,
) -> None:
    """Train a tokenizer by distillation; a run that was stopped goes on where it stopped."""
    with _failing():
        torch, stages, settings_of = _training()
        corpus = stages.Corpus(folder, manifest)
        card = stages.train(corpus, teacher, work, settings_of(minutes=minutes), torch.device(device), workers)
        if as_json:
            print_line(card)
        else:
            stderr.print(f"held-out cosine {card['held_out_cosine']:.4f}; next: sayagain export {work} --out FILE.onnx")


@app.command()
def export(
    work: Annotated[Path, typer.Argument(help="the work folder of `sayagain train`")],
    out: Annotated[Path, typer.Option(help="the ONNX file to write")],
    name: Annotated[str, typer.Option(help="the tokenizer's name")] = "fast",
    version: Annotated[str, typer.Option(help="the tokenizer's version")] = "1",
    licence: Annotated[str, typer.Option(help="licence of the weights")] = "Apache-2.0",
    trained_on: Annotated[str, typer.Option(help="corpora and teacher, in a line")] = "see the model card",
) -> None:
    """Write a trained tokenizer as one ONNX file and read it back."""
    with _failing():
        from model.export import Description

        _, stages, _ = _training()
        stages.export_work(work, Description(name, version, licence, trained_on), out)
        info = Tokenizer(out).info
        stderr.print(f"{out}: {info.name} {info.version}, sha256 {info.sha256[:12]}", markup=False)


@app.command()
def evaluate(
    task: Annotated[Path, typer.Argument(help="task file (JSON)")],
    archive: ArchiveOption = "default",
    in_context: Annotated[
        bool, typer.Option("--in-context", help="query with the stretch of the source recording")
    ] = False,
    folder: Annotated[Path | None, typer.Option(help="the archive's folder, for --in-context")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="look at every segment")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a task against an indexed archive and print MAP, MRR, P@10 and MTWV."""
    from service import tasks
    from service.deps import Backend

    with _failing():
        if in_context and folder is None:
            raise typer.BadParameter("needs --folder", param_hint="--in-context")
        backend = Backend.open(Settings())
        result = tasks.run(backend, task, archive, folder if in_context else None, exact, stderr)
        backend.close()
        if as_json:
            print_line(result.as_json())
        else:
            output.print_figures(result.figures)


def _training() -> Any:
    """torch, the stages and their settings, or one clear line where the train extra is missing."""
    try:
        import torch

        from model.training import stages
        from model.training.distil import DistilSettings
    except ImportError as error:
        stderr.print(
            f"sayagain: train_extra_missing: {error.name} is needed: pip install 'sayagain[train]'", markup=False
        )
        raise typer.Exit(EXIT_FAILED) from None
    return torch, stages, DistilSettings


def print_line(value: object) -> None:
    """One JSON object on stdout."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Entry point of the `sayagain` command."""
    app()
