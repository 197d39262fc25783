"""What tests of live sources share: speech, rows to compare, and a listener in a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Engine, text

import service
from indexer import pipeline
from indexer.live.listener import Listener, Options, Stored
from indexer.live.source import Source
from model import audio
from model.audio import Samples
from model.tokenizer import Tokenizer

DEMO = Path(service.__file__).parent / "demo"
STATION = DEMO / "archive" / "skerry-radio"


def speech(*names: str) -> Samples:
    """Recordings of the demo's station, one after another: float32 [n]."""
    return np.concatenate([audio.read(STATION / f"{name}.opus") for name in names])


class Listening(threading.Thread):
    """A listener in a thread; `failed` is what ended it."""

    def __init__(self, engine: Engine, archive: str, source: Source, tokenizer: Tokenizer, options: Options) -> None:
        super().__init__(daemon=True)
        self.stop = threading.Event()
        self.stored: list[Stored] = []
        self.failed: Exception | None = None
        known = {tokenizer.info.sha256: tokenizer}
        self._listener = Listener(engine, archive, source, tokenizer, known.get, options, self.stored.append)
        self.start()

    def run(self) -> None:
        try:
            self._listener.run(self.stop)
        except Exception as error:
            self.failed = error

    def finish(self) -> None:
        """Stop, and see that all went well."""
        self.stop.set()
        self.over()

    def over(self) -> None:
        """Wait for its end, and see that all went well."""
        self.join(120)
        assert not self.is_alive()
        if self.failed is not None:
            raise self.failed


@contextmanager
def listening(
    engine: Engine, archive: str, source: Source, tokenizer: Tokenizer, folder: Path, **options: Any
) -> Iterator[Listening]:
    """A listener that keeps its files in `folder`, until this is left."""
    given = {"every_s": 0.2, "shared": False} | options
    one = Listening(engine, archive, source, tokenizer, Options(folder, **given))
    try:
        yield one
    finally:
        one.stop.set()
        one.join(120)


def until(ready: Callable[[], Any], wait_s: float = 90.0) -> Any:
    """What `ready` gives as soon as that is something."""
    deadline = time.monotonic() + wait_s
    while not (found := ready()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


ROWS = """
    SELECT recording.name, recording.path, recording.bytes, recording.mtime_ns, content_sha256, duration_s,
        recording.segments, position, segment.start_s, segment.frames, tokens, checksum
    FROM recording JOIN archive ON archive.id = recording.archive_id LEFT JOIN segment ON recording_id = recording.id
    WHERE archive.name = :archive ORDER BY recording.name, position
"""


def rows(engine: Engine, archive: str) -> list[Any]:
    """All that an archive says of its recordings and segments."""
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(ROWS), {"archive": archive})]


def counted(engine: Engine, archive: str) -> Any:
    """Recordings, segments and seconds as the archive counts them, and as they are."""
    with engine.connect() as connection:
        return connection.execute(
            text("""
                SELECT archive.recordings, archive.segments, round(archive.audio_s::numeric, 6),
                    (SELECT count(*) FROM recording WHERE archive_id = archive.id),
                    (SELECT count(*) FROM segment WHERE archive_id = archive.id),
                    (SELECT round(coalesce(sum(duration_s), 0)::numeric, 6) FROM recording
                        WHERE archive_id = archive.id)
                FROM archive WHERE name = :archive
            """),
            {"archive": archive},
        ).one()


def same_as_indexed(engine: Engine, archive: str, folder: Path, tokenizer: Path) -> list[Any]:
    """An archive's rows, which are those of an index run over what was kept, and are counted right."""
    live = rows(engine, archive)
    pipeline.index_archive(engine, [folder], "anew", tokenizer, workers=1, codebook="tokenizer", codes=False)
    assert live == rows(engine, "anew")
    counts = counted(engine, archive)
    assert tuple(counts[:3]) == tuple(counts[3:])
    return live
