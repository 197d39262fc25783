"""A live source: heard, kept, tokenized as it comes, and stored so soon that what was just said is found."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from indexer.live import sound
from indexer.live.intake import LiveIntake, Stored
from indexer.live.receiver import Receiver
from indexer.live.recorder import Event, Recorder, Recording, keeping, recording_at
from indexer.live.sound import POSITION, Place
from indexer.live.source import Source, label_of
from indexer.live.store import LiveStore, SourceBusy
from model.tokenizer import Tokenizer

__all__ = ["Listener", "Options", "Stored"]

CLAIM_S = 10.0  # that a listener which was killed may take to be gone
BEHIND_S = 0.3  # of each turn are for recordings that are still to be stored, while others are heard
STOP_S = 5.0  # that a source may take to let go
LAST_S = 60.0  # that the database may take to answer again, where all has been heard

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """How a source is listened to.

    Files go to a folder of `folder` that is named after the source, and before that after the archive where it is
    `shared` by archives; where sound is not `kept` they go when they are stored. A recording ends in the first pause
    after `length_s`; what is new is stored every `every_s`; a source that ends is heard `once`, or again.
    """

    folder: Path
    shared: bool = True
    kept: bool = True
    length_s: float = 600.0
    every_s: float = 1.0
    once: bool = False


class Listener:
    """Listens to one source for one archive, until it is told to stop.

    `tokenizers` gives the tokenizer of a hash, `told` is told of each recording that is over and stored.
    """

    def __init__(
        self,
        engine: Engine,
        archive: str,
        source: Source,
        tokenizer: Tokenizer,
        tokenizers: Callable[[str], Tokenizer | None],
        options: Options,
        told: Callable[[Stored], None] = lambda _: None,
    ) -> None:
        self._store = LiveStore(engine, archive, source.label)
        self._intake = LiveIntake(self._store, tokenizer, tokenizers, told, kept=options.kept)
        self._archive, self._source, self._tokenizer, self._options = archive, source, tokenizer, options
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()

    def run(self, stop: threading.Event) -> None:
        """Listen until `stop` is set, or the source has ended that is heard once.

        What an earlier run kept and did not store is stored too. Raises SourceBusy; TokenizerMismatch, BadArchiveName;
        DatabaseError where the database is gone at the beginning or at the end; SourceLost for a source that is heard
        once and gives nothing; NotKept where there is no room for its sound; ArchiveNotFound where the archive goes.
        """
        with self._claimed() as folder:
            with keeping():
                left, heard = _left_behind(folder)
            self._intake.begin(left)
            recorder = Recorder(folder, self._options.length_s, self._events.put)
            over = lambda: self._events.put(None)  # noqa: E731
            receiver = Receiver(self._source, recorder, heard, over, once=self._options.once)
            receiver.start()
            try:
                while self._drain(time.monotonic() + self._options.every_s, stop):
                    self._intake.turn(BEHIND_S)
            finally:
                receiver.stop(STOP_S)
                recorder.close()
            self._finish(stop)
            if receiver.problem is not None:
                raise receiver.problem

    def _drain(self, until: float, stop: threading.Event) -> bool:
        """Take what has been heard, and what is until that time; False where nothing more will come."""
        while not stop.is_set():
            left_s = until - time.monotonic()
            try:
                event = self._events.get(timeout=min(left_s, 0.2)) if left_s > 0.0 else self._events.get_nowait()
            except queue.Empty:
                if left_s > 0.0:
                    continue
                return True
            if event is None:
                return False
            self._intake.take(event)
        return False

    def _finish(self, stop: threading.Event) -> None:
        """Store what is left; all of it, where nobody has told to stop. Raises DatabaseError."""
        while not self._events.empty():
            event = self._events.get()
            if event is not None:
                self._intake.take(event)
        until = time.monotonic() + LAST_S
        while not stop.is_set() and not self._intake.turn(BEHIND_S):
            if self._intake.problem is None:
                until = time.monotonic() + LAST_S
            elif time.monotonic() > until:
                break
            else:
                stop.wait(0.1)
        if self._intake.problem is not None:
            raise self._intake.problem

    @contextmanager
    def _claimed(self) -> Iterator[Path]:
        """The source's folder, with nobody else at it, nor at the same source and archive elsewhere."""
        until = time.monotonic() + CLAIM_S
        while True:
            try:
                archive = self._store.open(self._tokenizer)
                break
            except SourceBusy:
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)
        try:
            root = self._options.folder.absolute()
            folder = root / f"{label_of(archive.name)}-{archive.id}" if self._options.shared else root
            folder = folder / self._source.label
            with sound.claimed(folder) as free:
                if not free:
                    raise SourceBusy(f"somebody else listens to {self._source.label} and keeps it in {folder}")
                yield folder
        finally:
            self._store.close()


def _left_behind(folder: Path) -> tuple[list[Recording], Place | None]:
    """What an earlier run has not stored, made whole; and how far it has heard a file. Raises OSError."""
    heard = sound.read_place(folder / POSITION)
    left: list[Recording] = []
    for path, place in sound.marked(folder):
        samples = sound.finish(path)
        if not samples:
            sound.mark_of(path).unlink(missing_ok=True)
            continue
        log.info("%s was not finished: it is stored now", path.name)
        left.append(recording_at(path))
        reached = Place(place.file, place.samples + samples, place.bytes)
        if place.file and (heard is None or heard.file != place.file or heard.samples < reached.samples):
            heard = reached
    return left, heard
