"""The cascade, one stage after another, from clips to hits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, Engine

from indexer import database, store
from model.codebook import Codebook
from model.tokenizer import Tokenizer
from service.clips import Clip
from service.errors import ArchiveNotReady
from service.search import calibration, cascade, rescoring
from service.search.answer import Answer, Clock, Request
from service.search.cascade import SearchSettings
from service.search.feedback import Setting, marked
from service.search.fusion import averaged
from service.search.localindex import LocalIndex, View
from service.search.query import Query, Reference, hear, locate, remember
from service.search.ranking import Ranking, named, rank
from service.search.stretches import Stretches

Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class _Session:
    """An archive as one search, or one batch of them, sees it."""

    archive: store.ArchiveInfo
    tokenizer: Tokenizer
    setting: Setting

    @property
    def view(self) -> View:
        return self.setting.view


class SearchEngine:
    """Answers questions about archives; threads may share one."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        settings: SearchSettings | None = None,
        others: Callable[[str], Tokenizer | None] | None = None,
        folder: Path | None = None,
    ) -> None:
        """`others` gives the tokenizer of a hash, for archives that were made with another than `tokenizer`.

        `folder` is where the local index lies; None keeps it in memory.
        """
        self.database = engine
        self.tokenizer = tokenizer
        self._others = others
        self.settings = settings or SearchSettings()
        self.index = LocalIndex(folder)
        self._codebooks: dict[int, Codebook] = {}
        self._samples: WeakKeyDictionary[View, rescoring.Codes] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def search(self, request: Request) -> Answer:
        """Run the cascade.

        Raises NoSpeech for a clip; RecordingNotFound, BadStretch, QueryTooLong for a stretch of a recording;
        ArchiveNotFound, ArchiveNotReady, TokenizerMismatch for the archive.
        """
        clock = Clock()
        with database.connect(self.database) as connection:
            session = self._open(connection, request.archive)
            clock.lap("candidates")
            queries = [self._hear(example, connection, session) for example in request.examples]
            clock.lap("tokenize")
            excluded = store.recording_ids(connection, session.archive.id, request.exclude)
            judged = [
                [locate(r, connection, session.archive.id, session.tokenizer.info.frame_seconds) for r in some]
                for some in (request.right, request.wrong)
            ]
            clock.lap("candidates")
            places, evidence = self._find(queries, request, session, excluded, clock)
            if request.right or request.wrong:
                right, wrong = ([tokens for _, tokens in some] for some in judged)
                evidence = marked(places, evidence, session.setting, right, wrong)
            asked = [query.place for query in queries if query.place is not None]
            ranking = rank(places, evidence, session.view, request, asked + [place for place, _ in judged[1]])
            hits = named(ranking, queries, session.view, connection)
            clock.lap("rescoring")
        archive = session.archive
        return Answer(queries[0], hits, clock.timing(), archive.recordings, archive.hours, session.tokenizer.info.name)

    def _open(self, connection: Connection, name: str) -> _Session:
        archive = store.get_archive(connection, name)
        tokenizer = self._tokenizer_of(archive)
        if archive.codebook_id is None or archive.recordings == 0:
            raise ArchiveNotReady(f"nothing has been indexed into the archive {archive.name!r} yet", "archive")
        codebook = self._codebook(connection, archive.codebook_id)
        parts = 0 if codebook.pq is None else len(codebook.pq)
        view = self.index.view(connection, archive, codebook.sha256, parts)
        with self._lock:
            sample = self._samples.get(view)
        if sample is None:
            sample = calibration.sample_of(view)
            with self._lock:
                self._samples[view] = sample
        return _Session(archive, tokenizer, Setting(view, codebook, sample))

    def _codebook(self, connection: Connection, codebook_id: int) -> Codebook:
        with self._lock:
            if codebook_id not in self._codebooks:
                self._codebooks[codebook_id] = store.load_codebook(connection, codebook_id)
            return self._codebooks[codebook_id]

    def _tokenizer_of(self, archive: store.ArchiveInfo) -> Tokenizer:
        """Raises TokenizerMismatch where the tokenizer that the archive was made with is not at hand."""
        own = self.tokenizer
        if self._others is not None and archive.tokenizer_sha256 != own.info.sha256:
            own = self._others(archive.tokenizer_sha256) or own
        store.require_tokenizer(archive, own.info.sha256, own.info.name)
        return own

    def _hear(self, example: Clip | Reference, connection: Connection, session: _Session) -> Query:
        codebook, frame_s = session.setting.codebook, session.tokenizer.info.frame_seconds
        if isinstance(example, Clip):
            return hear(example, session.tokenizer, codebook)
        longest_s = self.settings.longest_reference_s
        return remember(example, connection, session.archive.id, codebook, frame_s, longest_s)

    def _find(
        self, queries: Sequence[Query], request: Request, session: _Session, excluded: set[int], clock: Clock
    ) -> tuple[Stretches, calibration.Evidence]:
        """Places that may be right, the likest first, and what speaks for each."""
        alive = [_without(part.alive, part.shard.recording, excluded) for part in session.view.parts]
        return cascade.find(averaged(queries), session.setting, alive, self.settings, request.exact, clock)


def _without(alive: Bool, recording: npt.NDArray[np.int64], excluded: set[int]) -> Bool:
    if not excluded:
        return alive
    return alive & ~np.isin(recording, np.fromiter(excluded, np.int64, len(excluded)))


__all__ = ["Ranking", "Request", "SearchEngine", "SearchSettings"]
