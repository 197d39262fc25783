"""Indexing: what was found is decoded and tokenized by worker processes, and stored, one transaction a recording."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from sqlalchemy import Connection, Engine, text

from indexer import fitting, intake, sources, store
from indexer.cluster import ClusterPool
from indexer.database import translated
from indexer.discover import Failure, Found, FoundFile, discover, root_of
from indexer.messages import Index, Indexed, Measure, Measured, Setup, Task, UseCodebook
from indexer.plan import Known, Plan, plan
from indexer.pool import Pool
from indexer.recordings import delete_recording
from indexer.report import IndexReport, Progressed, Run
from indexer.sources import Place
from indexer.workforce import Workforce
from model.tokenizer import Device, Tokenizer

__all__ = ["CodebookInForce", "Failure", "IndexReport", "Progressed", "index_archive", "index_files"]

MEASURED_AT_ONCE = 64  # files


class CodebookInForce(Exception):
    """The archive has recordings, and a codebook of another kind than the one asked for."""

    code = "codebook_in_force"


def index_archive(
    engine: Engine,
    paths: Iterable[Path | str],
    archive: str,
    tokenizer_path: Path | str,
    *,
    workers: int = 2,
    codebook: fitting.Kind | None = None,
    codes: bool = True,
    device: Device = "cpu",
    progress: Callable[[Progressed], None] | None = None,
    seed: int = 0,
    scheduler: str | None = None,
    prune: bool = False,
) -> IndexReport:
    """Index the audio files in `paths` (folders and files) into an archive, which is made where there is none.

    What the archive has already and is unchanged is skipped, and what was moved or renamed keeps its tokens. With
    `prune`, recordings whose file lay in `paths` and is gone are removed. A file that cannot be indexed is reported and
    keeps the rows that it had; each other file is stored in a transaction of its own, so a run that breaks off loses
    only the files it was at, and another run finishes the rest. `codebook` matters to an archive without recordings;
    None fits an own one where there are two minutes of speech; without `codes` a codebook makes none, and
    segments have tokens alone. The same files and `seed` give the same rows, also where the workers of the Dask
    `scheduler` at that address do the work.

    Raises NoAudioFound, TokenizerError, TokenizerMismatch, BadArchiveName, ArchiveBusy, CodebookInForce,
    CodebookTooLittleAudio, DatabaseError, WorkersFailed, ClusterMissing, SchedulerLost.
    """
    return index_files(
        engine, discover(paths), archive, tokenizer_path,
        workers=workers, codebook=codebook, codes=codes, device=device, progress=progress, seed=seed,
        scheduler=scheduler, prune=[root_of(path) for path in paths] if prune else (),
    )  # fmt: skip


def index_files(
    engine: Engine,
    found: Found,
    archive: str,
    tokenizer_path: Path | str,
    *,
    workers: int = 2,
    codebook: fitting.Kind | None = None,
    codes: bool = True,
    device: Device = "cpu",
    progress: Callable[[Progressed], None] | None = None,
    seed: int = 0,
    scheduler: str | None = None,
    descriptions: Mapping[str, intake.Description] | None = None,
    replace: bool = False,
    again: frozenset[str] = frozenset(),
    prune: Sequence[Place] = (),
) -> IndexReport:
    """`index_archive` for files that have been found, with what their owner says of each, by name.

    With `replace` a file takes the place of a recording of its name wherever that is from; those `again` are indexed
    also where nothing has changed; what lay in a folder of `prune` and is gone is removed. What `progress` raises ends
    the run. Raises like `index_archive`, without NoAudioFound.
    """
    run = Run(progress)
    descriptions = descriptions or {}
    tokenizer = Tokenizer(tokenizer_path, threads=1, device=device)
    run.failed += found.failed
    with translated(), _locked_archive(engine, archive, tokenizer) as (connection, info):
        if codebook is not None and info.recordings and info.codebook_kind != codebook:
            raise CodebookInForce(f"the archive {archive!r} has a codebook of the kind {info.codebook_kind!r} in force")
        known = _known(connection, info)
        work = plan(found.files, known, replace=replace, again=again, prune=prune)
        run.failed += work.failed
        with connection.begin():
            for old, file in work.touched + work.moved:
                path = os.fsencode(file.path)
                intake.touch_recording(connection, old.id, file.name, path, file.bytes, file.mtime_ns)
            for old in work.removed:
                with contextlib.suppress(store.RecordingNotFound):  # somebody else has
                    delete_recording(connection, info.id, old.id)
        run.failed += _described(connection, info.id, known, work, descriptions)
        if work.index:
            with _workforce(min(workers, len(work.index)), Setup(Path(tokenizer_path), device), scheduler) as pool:
                _index(connection, info, work.index, tokenizer, pool, run, codebook, codes, seed, descriptions)
            _settle(connection)
        return _report(connection, archive, len(found.files) + len(found.failed), work, run, tokenizer)


def _workforce(workers: int, setup: Setup, scheduler: str | None) -> Workforce:
    """So many processes of this machine, or the workers of the scheduler at that address."""
    return Pool(workers, setup) if scheduler is None else ClusterPool(scheduler, setup)


@contextlib.contextmanager
def _locked_archive(engine: Engine, name: str, tokenizer: Tokenizer) -> Iterator[tuple[Connection, store.ArchiveInfo]]:
    """A connection that alone may index into the archive; the lock goes when the connection does, however it ends."""
    with engine.connect() as connection:
        connection.detach()
        with connection.begin():
            archive = intake.create_archive(connection, name, tokenizer.info, tokenizer.codebook.dim)
            store.lock_archive(connection, archive, for_transaction=False)
        with connection.begin():
            archive = store.get_archive(connection, name)  # as it is now that nobody else changes it
        yield connection, archive


def _known(connection: Connection, archive: store.ArchiveInfo) -> dict[str, Known]:
    with connection.begin():
        rows = connection.execute(
            text("""
                SELECT id, name, path, bytes, mtime_ns, content_sha256, codebook_id FROM recording
                WHERE archive_id = :archive_id
            """),
            {"archive_id": archive.id},
        )
        return {
            row.name: Known(
                row.id, row.name, sources.place(os.fsdecode(row.path)), row.bytes, row.mtime_ns,
                row.content_sha256.hex(), row.codebook_id == archive.codebook_id,
            )
            for row in rows
        }  # fmt: skip


def _index(
    connection: Connection,
    archive: store.ArchiveInfo,
    files: Sequence[FoundFile],
    tokenizer: Tokenizer,
    pool: Workforce,
    run: Run,
    kind: fitting.Kind | None,
    codes: bool,
    seed: int,
    descriptions: Mapping[str, intake.Description],
) -> None:
    durations_s = _measure(pool, files, run)
    heard = {}
    if archive.codebook_id is not None and (archive.recordings or kind in (None, archive.codebook_kind)):
        codebook_id = archive.codebook_id
        with connection.begin():
            codebook = store.load_codebook(connection, codebook_id)
    else:
        choice = fitting.Choice(kind, codes, seed)
        fitted = fitting.fit(pool, tokenizer, files, durations_s, choice, run.tell)
        codebook, heard = fitted.codebook, fitted.heard
        with connection.begin():
            codebook_id = intake.save_codebook(connection, archive.id, codebook, fitted.kind, fitted.parameters)
    pool.use(UseCodebook(codebook))
    with connection.begin():
        ids = dict(zip((file.name for file in files), intake.reserve_ids(connection, len(files)), strict=True))
    total_s = sum(durations_s.values())
    done_s = 0.0
    run.tell("indexing", done_s, total_s)
    tasks: list[Task] = [Index(file, heard.pop(file.name, None)) for file in files]
    for done in pool.run(tasks):
        if isinstance(done.result, Indexed):
            name = done.result.file.name
            try:
                _store(connection, archive.id, codebook_id, ids[name], done.result, descriptions.get(name))
                run.count(done.result)
            except store.ExternalIdTaken as error:
                run.failed.append(Failure(name, error.code, str(error)))
        else:
            assert isinstance(done.result, Failure)
            run.failed.append(done.result)
            name = done.result.name
        done_s += durations_s[name]
        run.tell("indexing", done_s, total_s)


def _measure(pool: Workforce, files: Sequence[FoundFile], run: Run) -> dict[str, float]:
    """Seconds of each file as its container claims, or as its size suggests."""
    run.tell("looking", 0.0, 0.0)
    batches: list[Task] = [
        Measure(list(files[i : i + MEASURED_AT_ONCE])) for i in range(0, len(files), MEASURED_AT_ONCE)
    ]
    out = {file.name: file.bytes / fitting.BYTES_PER_S for file in files}
    for done in pool.run(batches):
        if isinstance(done.task, Measure) and isinstance(done.result, Measured):
            for file, claimed_s in zip(done.task.files, done.result.durations_s, strict=True):
                if claimed_s is not None:
                    out[file.name] = claimed_s
    return out


def _described(
    connection: Connection,
    archive_id: int,
    known: Mapping[str, Known],
    work: Plan,
    descriptions: Mapping[str, intake.Description],
) -> list[Failure]:
    """What is said of recordings that need no indexing is noted; those that it cannot be said of."""
    failed = []
    later = {file.name for file in work.index} | {failure.name for failure in work.failed}
    for name, description in descriptions.items():
        if name in known and name not in later:
            try:
                with connection.begin():
                    intake.describe(connection, archive_id, known[name].id, description)
            except store.ExternalIdTaken as error:
                failed.append(Failure(name, error.code, str(error)))
    return failed


def _store(
    connection: Connection,
    archive_id: int,
    codebook_id: int,
    recording_id: int,
    result: Indexed,
    description: intake.Description | None,
) -> None:
    file = result.file
    recording = intake.NewRecording(
        recording_id, file.name, os.fsencode(file.path), file.bytes, file.mtime_ns, result.sha256, result.duration_s,
        codebook_id, description,
    )  # fmt: skip
    with connection.begin():
        intake.put_recording(connection, archive_id, recording, result.segments)


def _settle(connection: Connection) -> None:
    """Let the planner know what the tables are like now."""
    with connection.begin():
        connection.execute(text("ANALYZE segment, recording"))


def _report(connection: Connection, name: str, found: int, work: Plan, run: Run, tokenizer: Tokenizer) -> IndexReport:
    with connection.begin():
        archive = next(info for info in store.list_archives(connection) if info.name == name)
        codebook_bytes, outgrown, drifted, archive_s = 0, False, False, archive.hours * 3600.0
        if archive.codebook_id is not None:
            codebook_bytes = store.load_codebook(connection, archive.codebook_id).nbytes
            parameters = store.codebook_parameters(connection, archive.codebook_id)
            kind, size, frame_s = archive.codebook_kind, archive.codebook_size, tokenizer.info.frame_seconds
            outgrown = fitting.outgrown(kind, size, parameters, archive_s, frame_s)
            drifted = fitting.drifted(kind, parameters, run.speech_s, run.cosine)
    return IndexReport(
        archive=name,
        found=found,
        indexed=run.indexed,
        unchanged=work.unchanged,
        moved=len(work.moved),
        removed=[old.name for old in work.removed],
        failed=sorted(run.failed, key=lambda failure: (failure.name, failure.code)),
        audio_s=run.audio_s,
        speech_s=run.speech_s,
        tokens=int(run.used.sum()),
        tokens_per_s=run.speech_tokens / run.speech_s if run.speech_s > 0 else 0.0,
        wall_s=run.wall_s,
        entropy=run.entropy,
        codebook_kind=archive.codebook_kind or "",
        codebook_size=archive.codebook_size,
        codebook_bytes=codebook_bytes,
        archive_s=archive_s,
        bytes=max(0, archive.bytes - codebook_bytes),
        outgrown=outgrown,
        cosine=run.cosine,
        drifted=drifted,
    )
