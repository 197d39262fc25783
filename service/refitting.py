"""`sayagain refit`: an archive that has grown gets a codebook that is fitted to all of it, or its old one back."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from service import output
from service.console import JsonOption, failing, print_line, stderr
from service.settings import Settings


def refit(
    archive: Annotated[str, typer.Argument(help="name of the archive")],
    back: Annotated[
        bool, typer.Option("--back", help="in place of a new fit: what the archive was before the last one")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="worker processes")] = 2,
    as_json: JsonOption = False,
) -> None:
    """Fit an archive's codebook to all that it holds by now, and index it with that; searches go on meanwhile.

    What the archive was is kept beside it (as ARCHIVE~before, which may be deleted) for --back.
    """
    from indexer import database, store
    from service import registry, retokenizing
    from service.deps import open_database
    from service.search import localindex
    from service.search.localindex import FOLDER, LocalIndex

    with failing():
        settings = Settings()
        engine = open_database(settings)
        with database.connect(engine) as connection:
            sha256 = store.get_archive(connection, archive).tokenizer_sha256
        file_of = partial(registry.file_of, settings.home_path, settings.tokenizer)
        with output.IndexProgress(stderr) as progress:
            run = (
                partial(retokenizing.back, tokenizers=file_of)
                if back
                else partial(retokenizing.refit, tokenizer=file_of(sha256))
            )
            report = run(engine, archive, workers=workers, device=settings.device, progress=progress)
        output.print_failures(report, stderr)
        if as_json:
            print_line(report.as_json())
        else:
            output.print_index_report(report, stderr)
        with database.connect(engine) as connection:
            localindex.prepare(LocalIndex(settings.home_path / FOLDER), connection, archive)
