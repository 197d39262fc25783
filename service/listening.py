"""`sayagain listen`: a stream, a growing file or a device, searchable while it is heard."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service import registry
from service.console import JsonOption, failing, print_line
from service.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from indexer.live.listener import Stored

FOLDER = "live"  # in the data folder


def listen(
    source: Annotated[
        str, typer.Argument(help="http(s)://…, a file that grows, device:FORMAT:NAME, or rtsp://… and the like")
    ],
    archive: Annotated[str, typer.Option("--archive", "-a", help="name of the archive")] = "default",
    name: Annotated[
        str | None, typer.Option(help="of the source, before the names of its recordings; none: made from its address")
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="folder where the sound is kept; none: `live` in the data folder")
    ] = None,
    no_keep: Annotated[
        bool, typer.Option("--no-keep", help="do not keep the sound: hits cannot be played, the archive not refitted")
    ] = False,
    minutes: Annotated[float, typer.Option(min=0.5, max=60.0, help="length of a recording, to the next pause")] = 10.0,
    every: Annotated[float, typer.Option(min=0.2, max=60.0, help="seconds until what is new is stored")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="end where the source ends, and do not wait for more")] = False,
    tokenizer: Annotated[
        str | None, typer.Option(help="of a new archive: fast, a name that `sayagain tokenizer list` shows, or a file")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Listen to a source until stopped: what is said is found by searches, and by watches, within seconds."""
    from indexer.live import listener
    from indexer.live import source as sources
    from service import logs
    from service.deps import open_database

    if keep is not None and no_keep:
        raise typer.BadParameter("does not go with --keep", param_hint="--no-keep")
    with failing():
        settings = Settings()
        logs.configure(settings)
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        heard = sources.source_of(source, once=once)
        if name is not None:
            heard.label = sources.label_of(name)
        engine = open_database(settings)
        file = registry.file_for(engine, archive, tokenizer, settings)
        known = registry.Registry(settings.home_path, file, threads=1, device=settings.device)
        options = listener.Options(
            folder=keep or settings.home_path / FOLDER, shared=keep is None, kept=not no_keep,
            length_s=60.0 * minutes, every_s=every, once=once,
        )  # fmt: skip

        def told(stored: Stored) -> None:
            if as_json:
                print_line(_about(stored, heard.label))
            if stored.path is not None:
                _refit_where_outgrown(engine, archive, known, settings)

        listener.Listener(engine, archive, heard, known.default, known.find, options, told).run(stop)
        engine.dispose()


def _about(stored: Stored, source: str) -> dict[str, Any]:
    return {
        "recording": stored.recording.name,
        "id": stored.id,
        "source": source,
        "started": stored.recording.started.isoformat(timespec="milliseconds"),
        "duration": round(stored.duration_s, 3),
        "segments": stored.segments,
        "path": None if stored.path is None else str(stored.path),
    }


def _refit_where_outgrown(engine: Engine, name: str, known: registry.Registry, settings: Settings) -> None:
    """Ask for a job that fits the archive's codebook anew, where jobs of the service would do that by themselves."""
    from indexer import database, fitting, store
    from service.jobs import queue

    with database.connect(engine) as connection, connection.begin():
        archive = store.get_archive(connection, name)
        own = known.find(archive.tokenizer_sha256)
        if archive.codebook_id is None or own is None or archive.hours > settings.refit_hours:
            return
        parameters = store.codebook_parameters(connection, archive.codebook_id)
        frame_s, archive_s = own.info.frame_seconds, archive.hours * 3_600.0
        if fitting.outgrown(archive.codebook_kind, archive.codebook_size, parameters, archive_s, frame_s):
            queue.add_once(connection, archive.id, "refit")
