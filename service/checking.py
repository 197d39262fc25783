"""`sayagain check`: archives against their checksums, and what is damaged made anew from the recordings."""

from __future__ import annotations

from typing import Annotated

import typer

from service import output
from service.console import JsonOption, failing, print_line, stderr
from service.errors import EXIT_PARTLY
from service.settings import Settings


def check(
    archives: Annotated[list[str] | None, typer.Argument(help="names of archives; without any, all")] = None,
    contents: Annotated[bool, typer.Option("--contents", help="read the recordings' files too")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="index damaged recordings again from their files")] = False,
    workers: Annotated[int, typer.Option(min=1, help="worker processes of a repair")] = 2,
    as_json: JsonOption = False,
) -> None:
    """Verify archives: checksums of all that is stored, counts, and whether the recordings' files are what was indexed.

    Exits with 3 where something is damaged and stays so. A file that is gone or has changed is listed, and no damage.
    """
    from functools import partial

    from indexer import database, store
    from service import registry, repairing
    from service.deps import open_database
    from service.search import localindex
    from service.search.localindex import FOLDER, LocalIndex

    bad = False
    with failing():
        settings = Settings()
        engine = open_database(settings)
        with database.connect(engine) as connection:
            listed = {archive.name: archive for archive in store.list_archives(connection)}
            wanted = [store.get_archive(connection, name) for name in archives or listed]
        file_of = partial(registry.file_of, settings.home_path, settings.tokenizer)
        for archive in wanted:
            checked = repairing.look(engine, archive.name, contents=contents)
            output.print_checked(checked, stderr)
            if checked.problems and repair:
                with output.IndexProgress(stderr) as progress:
                    checked = repairing.repair(
                        engine, checked, file_of(archive.tokenizer_sha256),
                        workers=workers, device=settings.device, progress=progress,
                    )  # fmt: skip
                stderr.print(f"repaired {output.printable(archive.name)}:", markup=False, soft_wrap=True)
                output.print_checked(checked, stderr)
                with database.connect(engine) as connection:
                    localindex.prepare(LocalIndex(settings.home_path / FOLDER), connection, archive.name)
            bad = bad or bool(checked.problems)
            if as_json:
                print_line(checked.as_json())
    raise typer.Exit(EXIT_PARTLY if bad else 0)
