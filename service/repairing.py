"""What is damaged in an archive is made anew from the files that it was made from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Engine

from indexer import database, integrity, pipeline, spares, store
from indexer.integrity import Checked
from indexer.report import Progressed
from model.tokenizer import Device, Tokenizer
from service import retokenizing


def look(engine: Engine, name: str, *, files: bool = True, contents: bool = False) -> Checked:
    """`integrity.check` of an archive as it is at one moment. Raises ArchiveNotFound."""
    with database.connect(engine) as connection:
        connection = connection.execution_options(isolation_level="REPEATABLE READ")
        return integrity.check(connection, name, files=files, contents=contents)


def repair(
    engine: Engine,
    checked: Checked,
    tokenizer: Path,
    *,
    workers: int = 2,
    device: Device = "cpu",
    progress: Callable[[Progressed], None] | None = None,
) -> Checked:
    """Mend what was found, as far as the files are there, and look again.

    A damaged codebook is taken from the tokenizer where it is the tokenizer's; an own one is lost, and the archive is
    fitted and indexed anew. Damaged recordings are indexed again with the codebook in force. Raises StoreError,
    TokenizerError, DatabaseError, RetokenizeFailed where all files are needed and some are missing, and what
    `pipeline.index_files` raises.
    """
    name = checked.archive
    codes = {problem.code for problem in checked.problems}
    if "codebook_damaged" in codes and not _restored(engine, name, tokenizer):
        retokenizing.refit(engine, name, tokenizer, workers=workers, device=device, progress=progress)
        with database.connect(engine) as connection, connection.begin():
            kept = spares.find(connection, store.get_archive(connection, name), spares.KEPT)
            if kept is not None:  # with a codebook that nobody can read
                store.delete_archive(connection, kept.name)
    elif checked.damaged:
        with database.connect(engine) as connection:
            archive = store.get_archive(connection, name)
            damaged = [one for one in retokenizing.recordings_of(connection, archive) if one.name in checked.damaged]
        pipeline.index_files(
            engine, retokenizing.files_of(damaged), name, tokenizer, workers=workers, device=device, progress=progress,
            again=frozenset(checked.damaged), replace=True,
        )  # fmt: skip
    with database.connect(engine) as connection, connection.begin():
        archive = store.get_archive(connection, name)
        store.lock_archive(connection, archive, for_transaction=True)
        integrity.recount(connection, archive.id)
    return look(engine, name)


def _restored(engine: Engine, name: str, tokenizer: Path) -> bool:
    """Whether the codebook in force was the tokenizer's, which has it still."""
    own = Tokenizer(tokenizer, threads=1).codebook
    with database.connect(engine) as connection, connection.begin():
        codebook_id = store.get_archive(connection, name).codebook_id
        return codebook_id is not None and integrity.restore_codebook(connection, codebook_id, own)
