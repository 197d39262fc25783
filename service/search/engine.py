"""The cascade, one stage after another, from clips to hits."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, Engine

from indexer import database, store
from indexer.recordings import extent, recording_ids, recordings_by_id, recordings_where
from model.audio import read_between
from model.codebook import Codebook
from model.tokenizer import Tokenizer, TokenizerError
from model.tokens import TokenString
from service.clips import Clip
from service.errors import CLIP_ERRORS, ArchiveNotReady, AudioGone, DecoderFailed, DeepUnavailable, message_of
from service.search import calibration, cascade, rescoring
from service.search.answer import Answer, Clock, Request
from service.search.cascade import SearchSettings
from service.search.deep import DeepRescorer, Stretch
from service.search.feedback import Setting, marked
from service.search.fusion import averaged
from service.search.localindex import LocalIndex, Part, View
from service.search.located import Int64
from service.search.query import Place, Query, Reference, hear, locate, remember
from service.search.ranking import Ranking, named, rank, reordered
from service.search.rescoring import Float32
from service.sound import Reader

MOST_THREADS = 4  # of one batch

Bool = npt.NDArray[np.bool_]
Connect = Callable[[], AbstractContextManager[Connection]]
Clips = dict[int, Query]  # examples that are clips, by their places in the question


@dataclass(frozen=True, eq=False)
class _Session:
    """An archive as one search, or one batch of them, sees it."""

    archive: store.ArchiveInfo
    tokenizer: Tokenizer
    setting: Setting

    @property
    def view(self) -> View:
        return self.setting.view


@dataclass(frozen=True, eq=False)
class _Asked:
    """A question that has been heard: its queries, what may not be found, and what was judged."""

    request: Request
    queries: list[Query]
    excluded: set[int]
    only: set[int] | None
    none_of: list[Place]
    right: list[TokenString]
    wrong: list[TokenString]
    clock: Clock
    sounds: list[Float32]  # the examples as deep rescoring hears them


class SearchEngine:
    """Answers questions about archives; threads may share one."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        settings: SearchSettings | None = None,
        others: Callable[[str], Tokenizer | None] | None = None,
        folder: Path | None = None,
        deep: Callable[[], Tokenizer] | None = None,
        read: Reader = read_between,
    ) -> None:
        """`others` gives the tokenizer of a hash, for archives that were made with another than `tokenizer`.

        `folder` is where the local index lies; None keeps it in memory. `deep` gives the tokenizer of deep rescoring,
        when it is first asked for, or raises TokenizerError; `read` reads the sound that it hears.
        """
        self.database = engine
        self.tokenizer = tokenizer
        self.connect: Connect = partial(database.connect, engine)
        self._others = others
        self.settings = settings or SearchSettings()
        self.index = LocalIndex(folder)
        self._deep = deep
        self._read = read
        self.observe: Callable[[Answer], None] | None = None  # is told of each answer
        self._rescorer: DeepRescorer | None = None
        self._codebooks: dict[int, Codebook] = {}
        self._samples: WeakKeyDictionary[View, rescoring.Codes] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def search(self, request: Request, connect: Connect | None = None) -> Answer:
        """Run the cascade; `connect` gives another connection than usual.

        Raises NoSpeech for a clip; RecordingNotFound, BadStretch, QueryTooLong for a stretch of a recording;
        ArchiveNotFound, ArchiveNotReady, TokenizerMismatch for the archive; DeepUnavailable.
        """
        (answer,) = self.search_many([request], connect)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def search_many(self, requests: Sequence[Request], connect: Connect | None = None) -> list[Answer | Exception]:
        """Answers to several questions about one archive, which they see at one moment; cores share the work.

        A question whose clip or stretch is amiss has its exception in the answer's place. Raises ArchiveNotFound,
        ArchiveNotReady, TokenizerMismatch; DeepUnavailable; ValueError where the questions are about several archives.
        """
        if len({request.archive for request in requests}) != 1:
            raise ValueError("questions are asked of one archive at a time")
        with (connect or self.connect)() as connection:
            clock = Clock()
            session = self._open(connection, requests[0].archive)
            clock.lap("candidates")
            clocks = [clock, *(Clock() for _ in requests[1:])]
            with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as threads:
                each = threads.map if len(requests) > 1 else map
                clips = list(each(partial(_clips, session=session), requests, clocks))
                asked = [
                    self._asked(request, one, connection, session, own)
                    for request, one, own in zip(requests, clips, clocks, strict=True)
                ]
                heard = [one for one in asked if isinstance(one, _Asked)]
                ranked = iter(list(each(partial(self._ranked, session=session), heard)))
            return [
                one if isinstance(one, Exception) else self._answer(one, next(ranked), session, connection)
                for one in asked
            ]

    def _asked(
        self,
        request: Request,
        clips: dict[int, Query] | Exception,
        connection: Connection,
        session: _Session,
        clock: Clock,
    ) -> _Asked | Exception:
        """A question with its clips as they were heard, or what is amiss with it."""
        if isinstance(clips, Exception):
            return clips
        try:
            return self._heard(request, clips, connection, session, clock)
        except (*CLIP_ERRORS, store.RecordingNotFound) as error:
            return error

    def _heard(self, request: Request, clips: Clips, connection: Connection, session: _Session, clock: Clock) -> _Asked:
        """All of a question that the database has to do with."""
        clock.resume()
        queries = [
            clips[number] if isinstance(example, Clip) else self._remember(example, connection, session)
            for number, example in enumerate(request.examples)
        ]
        clock.lap("tokenize")
        excluded = recording_ids(connection, session.archive.id, request.exclude)
        only = _only(request, connection, session.archive.id)
        frame_s = session.tokenizer.info.frame_seconds
        right, wrong = (
            [locate(reference, connection, session.archive.id, frame_s) for reference in judged]
            for judged in (request.right, request.wrong)
        )
        none_of = [query.place for query in queries if query.place is not None] + [place for place, _ in wrong]
        clock.lap("candidates")
        sounds = self._sounds(request, queries, connection) if request.deep else []
        clock.lap("deep")
        return _Asked(
            request, queries, excluded, only, none_of, [t for _, t in right], [t for _, t in wrong], clock, sounds
        )

    def _ranked(self, asked: _Asked, session: _Session) -> Ranking:
        """The cascade itself, which asks no database: threads may run it side by side."""
        clock, setting = asked.clock, session.setting
        clock.resume()
        alive = [_alive(part, asked.excluded) for part in setting.view.parts]
        only = None if asked.only is None else _confined(setting.view, alive, asked.only)
        query = replace(averaged(asked.queries))  # a copy, so that its tables are gone when it has been ranked
        places, evidence = cascade.find(query, setting, alive, self.settings, asked.request.exact, clock, only)
        if asked.right or asked.wrong:
            evidence = marked(places, evidence, setting, asked.right, asked.wrong)
        wanted = asked.request
        if wanted.deep:  # whatever it may bring up has to be there
            wanted = replace(wanted, limit=wanted.limit + self.settings.deep_hits, min_score=0.0)
        ranking = rank(places, evidence, setting.view, wanted, asked.none_of)
        clock.lap("rescoring")
        return ranking

    def _answer(self, asked: _Asked, ranking: Ranking, session: _Session, connection: Connection) -> Answer:
        clock = asked.clock
        clock.resume()
        if asked.request.deep:
            ranking = self._deepened(ranking, asked, connection)
            clock.lap("deep")
        hits = named(ranking, asked.queries, session.view, connection)
        clock.lap("rescoring")
        recordings, hours = session.archive.recordings, session.archive.hours
        if asked.only is not None:
            recordings, hours = extent(connection, asked.only)
        answer = Answer(asked.queries[0], hits, clock.timing(), recordings, hours, session.tokenizer.info.name)
        if self.observe is not None:
            self.observe(answer)
        return answer

    def _deepened(self, ranking: Ranking, asked: _Asked, connection: Connection) -> Ranking:
        """The ranking after deep rescoring of the first hits, as far as the time goes."""
        until = time.monotonic() + self.settings.deep_budget_s
        first, times = ranking.order[: self.settings.deep_hits], ranking.times
        recordings = recordings_by_id(connection, times.recording[first].tolist())
        deep = np.full(len(ranking.places), np.nan, np.float32)
        chosen = [at for at in first if int(times.recording[at]) in recordings]
        stretches = [
            Stretch(recordings[int(times.recording[at])], float(times.start_s[at]), float(times.end_s[at]))
            for at in chosen
        ]
        so_far = ranking.evidence.take(chosen)
        deep[chosen] = self._deep_rescorer().similarity(asked.sounds, stretches, so_far, until)
        return reordered(ranking, replace(ranking.evidence, deep=deep), asked.request)

    def _sounds(self, request: Request, queries: Sequence[Query], connection: Connection) -> list[Float32]:
        """The examples by the embeddings of deep rescoring. Raises DeepUnavailable; NoSpeech."""
        rescorer = self._deep_rescorer()
        out = []
        for example, query in zip(request.examples, queries, strict=True):
            if isinstance(example, Clip):
                out.append(rescorer.hear(example))
                continue
            assert query.place is not None
            recordings = recordings_by_id(connection, [query.place.recording_id])
            try:
                out.append(rescorer.recall(query.place, recordings[query.place.recording_id]))
            except (AudioGone, DecoderFailed, KeyError) as error:
                raise DeepUnavailable(f"the stretch cannot be heard again: {message_of(error)}", "rescore") from error
        return out

    def _deep_rescorer(self) -> DeepRescorer:
        with self._lock:
            if self._rescorer is None:
                if self._deep is None:
                    raise DeepUnavailable("there is no tokenizer for deep rescoring", "rescore")
                try:
                    self._rescorer = DeepRescorer(self._deep(), self._read)
                except TokenizerError as error:
                    remedy = "`sayagain tokenizer build accurate` makes the usual one"
                    raise DeepUnavailable(f"no deep rescoring: {message_of(error)}; {remedy}", "rescore") from error
            return self._rescorer

    def _open(self, connection: Connection, name: str) -> _Session:
        while True:
            archive = store.get_archive(connection, name)
            tokenizer = self._tokenizer_of(archive)
            if archive.codebook_id is None or archive.recordings == 0:
                raise ArchiveNotReady(f"nothing has been indexed into the archive {archive.name!r} yet", "archive")
            codebook = self._codebook(connection, archive.codebook_id)
            view = self.index.view(connection, archive, codebook)
            # A view that is ahead may be of a moment at which another codebook was in force already, and empty.
            if (
                view.revision == archive.revision
                or store.get_archive(connection, name).codebook_id == archive.codebook_id
            ):
                break
        with self._lock:
            sample = self._samples.get(view)
        if sample is None:
            sample = calibration.sample_of(view)
            with self._lock:
                self._samples[view] = sample
        return _Session(archive, tokenizer, Setting(view, codebook, sample, calibration.map_of(tokenizer.info)))

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

    def _remember(self, example: Reference, connection: Connection, session: _Session) -> Query:
        codebook, frame_s = session.setting.codebook, session.tokenizer.info.frame_seconds
        longest_s = self.settings.longest_reference_s
        return remember(example, connection, session.archive.id, codebook, frame_s, longest_s)


def _clips(request: Request, clock: Clock, session: _Session) -> Clips | Exception:
    """The clips of a question, heard; or what is amiss with one."""
    clock.resume()
    try:
        return {
            number: hear(example, session.tokenizer, session.setting.codebook)
            for number, example in enumerate(request.examples)
            if isinstance(example, Clip)
        }
    except CLIP_ERRORS as error:
        return error
    finally:
        clock.lap("tokenize")


def _only(request: Request, connection: Connection, archive_id: int) -> set[int] | None:
    """The recordings to which a question is confined, or None."""
    if request.where is None:
        return None if request.only is None else set(request.only)
    found = set(recordings_where(connection, archive_id, request.where))
    return found if request.only is None else found & request.only


def _alive(part: Part, excluded: set[int]) -> Bool:
    """Which segments of a part are there for a question."""
    return part.alive & ~_among(part.shard.recording, excluded) if excluded else part.alive


def _confined(view: View, alive: Sequence[Bool], only: set[int]) -> list[Bool]:
    """Those of them whose recordings are asked for."""
    return [mask & _among(part.shard.recording, only) for part, mask in zip(view.parts, alive, strict=True)]


def _among(recording: Int64, ids: set[int]) -> Bool:
    return np.isin(recording, np.fromiter(ids, np.int64, len(ids)))
