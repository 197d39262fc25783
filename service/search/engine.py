"""The cascade, one stage after another, from clips to hits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, Engine

from indexer import database, store
from indexer.keys import bigrams, coarse_classes
from model.codebook import Codebook
from model.tokenizer import Tokenizer
from model.tokens import TokenString
from service.clips import Clip
from service.errors import ArchiveNotReady
from service.search import alignment, calibration, candidates, rescoring
from service.search.candidates import SegmentKey
from service.search.feedback import Stretch, background_of, second_look
from service.search.query import Place, Query, Reference, hear, remember

BACKGROUND_SEGMENTS = 300
BACKGROUND_S = 4.0  # of each: the best of a longer stretch is higher, and segments are not all of a length
BLOCK_SEGMENTS = 2_000  # segments held at a time by an exact search
LEAST_OVERLAP = 0.5  # of the shorter of two hits: more than that and they are one


@dataclass(frozen=True)
class SearchSettings:
    """What the cascade hands from stage to stage."""

    candidate_depth: int = 2_000
    rescore_depth: int = 2_000
    longest_reference_s: float = 30.0


@dataclass(frozen=True)
class Request:
    """A question: examples of one term, an archive's name, and what to answer.

    An example is a clip, or a stretch of a recording of the archive, which is no hit itself. Recordings whose names are
    in `exclude` are as if they were not there.
    """

    examples: Sequence[Clip | Reference]
    archive: str
    limit: int = 20
    min_score: float = 0.0
    exact: bool = False
    exclude: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Hit:
    """A place where the term is said, in seconds; `evidence` is what the score rests on."""

    recording: store.RecordingInfo
    start_s: float
    end_s: float
    score: float
    edit_similarity: float
    dtw_similarity: float
    evidence: calibration.Evidence


@dataclass(frozen=True)
class Timing:
    """Milliseconds per stage."""

    tokenize: float
    candidates: float
    alignment: float
    rescoring: float
    total: float


@dataclass(frozen=True)
class Answer:
    """Hits, best first, with what was asked and what was searched; the query is that of the first clip."""

    query: Query
    hits: list[Hit]
    timing_ms: Timing
    recordings: int
    hours: float
    tokenizer: str


@dataclass(frozen=True)
class _Loaded:
    """What an archive's searches share: its codebook, coarse classes, and a fixed sample of its segments."""

    codebook: Codebook
    classes: npt.NDArray[np.uint8]
    background: rescoring.Codes


@dataclass(frozen=True)
class _Found:
    """A match in an archive."""

    segment: SegmentKey
    stretch: Stretch

    @property
    def start_s(self) -> float:
        tokens = self.stretch.tokens
        return tokens.offset + self.stretch.start * tokens.frame_seconds

    @property
    def end_s(self) -> float:
        tokens = self.stretch.tokens
        return tokens.offset + self.stretch.end * tokens.frame_seconds


class _Clock:
    """Adds up milliseconds under the name of the stage that is on."""

    def __init__(self) -> None:
        self.ms = dict.fromkeys(("tokenize", "candidates", "alignment", "rescoring"), 0.0)
        self._started = self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.ms[stage] += (now - self._last) * 1e3
        self._last = now

    def timing(self) -> Timing:
        rounded = {stage: round(ms, 2) for stage, ms in self.ms.items()}
        return Timing(**rounded, total=round((time.perf_counter() - self._started) * 1e3, 2))


class SearchEngine:
    """Answers questions about archives; threads may share one."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        settings: SearchSettings | None = None,
        others: Callable[[str], Tokenizer | None] | None = None,
    ) -> None:
        """`others` gives the tokenizer of a hash, for archives that were made with another than `tokenizer`."""
        self.database = engine
        self.tokenizer = tokenizer
        self._others = others
        self.settings = settings or SearchSettings()
        self._loaded: dict[int, _Loaded] = {}
        self._lock = threading.Lock()

    def search(self, request: Request) -> Answer:
        """Run the cascade.

        Raises NoSpeech for a clip; RecordingNotFound, BadStretch, QueryTooLong for a stretch of a recording;
        ArchiveNotFound, ArchiveNotReady, TokenizerMismatch for the archive.
        """
        clock = _Clock()
        with database.connect(self.database) as connection:
            archive = store.get_archive(connection, request.archive)
            tokenizer = self._tokenizer_of(archive)
            if archive.codebook_id is None or archive.recordings == 0:
                raise ArchiveNotReady(f"nothing has been indexed into the archive {archive.name!r} yet", "archive")
            loaded = self._load(connection, archive.id, archive.codebook_id)
            clock.lap("candidates")
            queries = [
                hear(example, tokenizer, loaded.codebook)
                if isinstance(example, Clip)
                else remember(
                    example, connection, archive.id, loaded.codebook, tokenizer.info.frame_seconds,
                    self.settings.longest_reference_s,
                )
                for example in request.examples
            ]  # fmt: skip
            clock.lap("tokenize")
            found: list[list[_Found]] = [[] for _ in queries]
            excluded = store.recording_ids(connection, archive.id, request.exclude)
            for block in self._blocks(connection, archive, queries, loaded, request.exact, clock):
                for number, query in enumerate(queries):
                    rows = [row for row in block if row.recording_id not in excluded]
                    found[number] += self._match(query, rows, clock)
            scored = [m for query, matches in zip(queries, found, strict=True) for m in _scored(query, matches, loaded)]
            asked = [query.place for query in queries if query.place is not None]
            hits = _rank([one for one in scored if not _is_asked(one.match, asked)], request, connection)
            clock.lap("rescoring")
        return Answer(queries[0], hits, clock.timing(), archive.recordings, archive.hours, tokenizer.info.name)

    def _load(self, connection: Connection, archive_id: int, codebook_id: int) -> _Loaded:
        with self._lock:
            if codebook_id not in self._loaded:
                codebook = store.load_codebook(connection, codebook_id)
                parts = 0 if codebook.pq is None else len(codebook.pq)
                sample = store.sample_segments(connection, archive_id, BACKGROUND_SEGMENTS)
                background = rescoring.gather([_head(TokenString.from_bytes(row.tokens)) for row in sample], parts)
                self._loaded[codebook_id] = _Loaded(codebook, coarse_classes(codebook), background)
            return self._loaded[codebook_id]

    def _tokenizer_of(self, archive: store.ArchiveInfo) -> Tokenizer:
        """Raises TokenizerMismatch where the tokenizer that the archive was made with is not at hand."""
        own = self.tokenizer
        if self._others is not None and archive.tokenizer_sha256 != own.info.sha256:
            own = self._others(archive.tokenizer_sha256) or own
        store.require_tokenizer(archive, own.info.sha256, own.info.name)
        return own

    def _blocks(
        self,
        connection: Connection,
        archive: store.ArchiveInfo,
        queries: list[Query],
        loaded: _Loaded,
        exact: bool,
        clock: _Clock,
    ) -> Iterator[list[store.SegmentRow]]:
        """Segments to look at: all of them, or those that share keys with the queries."""
        depth = self.settings.candidate_depth
        if exact or archive.segments <= depth:  # all of them: there is nothing to choose
            for rows in store.iterate_segments(connection, archive.id, BLOCK_SEGMENTS):
                clock.lap("candidates")
                yield rows
            return
        keys = np.concatenate([bigrams(query.tokens.ids, loaded.classes) for query in queries])
        chosen = [c.segment for c in candidates.lookup(connection, archive.id, keys, archive.segments, depth)]
        rows = store.read_segments(connection, [(key.recording_id, key.position) for key in chosen])
        clock.lap("candidates")
        yield rows

    def _match(self, query: Query, rows: list[store.SegmentRow], clock: _Clock) -> list[_Found]:
        """Align all rows, rescore the best aligned."""
        strings = [TokenString.from_bytes(row.tokens) for row in rows]
        aligned = alignment.align(query.tokens.ids, [string.ids for string in strings])
        aligned.sort(key=lambda a: (-a.similarity, a.candidate))
        keep = sorted(a.candidate for a in aligned[: self.settings.rescore_depth])
        clock.lap("alignment")
        kept = [strings[i] for i in keep]
        segments = [SegmentKey(rows[i].recording_id, rows[i].position) for i in keep]
        matches = rescoring.match(query.tables, rescoring.gather(kept, query.tables.residual.shape[1]))
        clock.lap("rescoring")
        return [_Found(segments[m.segment], Stretch(kept[m.segment], m.start, m.end, m.similarity)) for m in matches]


@dataclass(frozen=True)
class _Scored:
    """A match with its score, what that rests on, and the query it answers."""

    score: float
    evidence: calibration.Evidence
    match: _Found
    query: Query

    @property
    def order(self) -> tuple[float, float, int, int]:
        """Best first; of equals the more similar, then the one that was indexed first."""
        segment = self.match.segment
        return -self.score, -self.match.stretch.similarity, segment.recording_id, segment.position


def _scored(query: Query, matches: list[_Found], loaded: _Loaded) -> list[_Scored]:
    """A query's matches, looked at a second time and calibrated."""
    background = background_of(query.tables, loaded.background)
    evidence = second_look(
        [m.stretch for m in matches], background, loaded.codebook, loaded.background, query.tokens.frames
    )
    return [_Scored(e.score, e, match, query) for e, match in zip(evidence, matches, strict=True)]


def _rank(scored: list[_Scored], request: Request, connection: Connection) -> list[Hit]:
    """Join the matches of several clips, merge overlaps, and name the recordings."""
    ranked: list[_Scored] = []
    by_recording: dict[int, list[_Found]] = {}
    for one in sorted(scored, key=lambda s: s.order):
        if one.score < request.min_score or len(ranked) == request.limit:
            break
        neighbours = by_recording.setdefault(one.match.segment.recording_id, [])
        if not any(_same_place(one.match, other) for other in neighbours):
            neighbours.append(one.match)
            ranked.append(one)
    names = store.recordings_by_id(connection, [one.match.segment.recording_id for one in ranked])
    return [
        Hit(
            names[one.match.segment.recording_id], one.match.start_s, one.match.end_s, one.score,
            alignment.edit_similarity(one.query.tokens.ids, _stretch_ids(one.match.stretch)),
            one.match.stretch.similarity, one.evidence,
        )
        for one in ranked
        if one.match.segment.recording_id in names
    ]  # fmt: skip


def _head(tokens: TokenString) -> TokenString:
    return tokens.part(0, max(1, round(BACKGROUND_S / tokens.frame_seconds)))


def _stretch_ids(found: Stretch) -> npt.NDArray[np.uint16]:
    """Tokens of the matched stretch."""
    ends = np.cumsum(found.tokens.durations, dtype=np.int64)
    return found.tokens.ids[np.searchsorted(ends, found.start, "right") : np.searchsorted(ends, found.end, "left") + 1]


def _is_asked(found: _Found, asked: list[Place]) -> bool:
    """Whether a match is one of the stretches that are asked about."""
    return any(found.segment.recording_id == place.recording_id and _same_place(found, place) for place in asked)


def _same_place(one: _Found, other: _Found | Place) -> bool:
    overlap = min(one.end_s, other.end_s) - max(one.start_s, other.start_s)
    return overlap > LEAST_OVERLAP * min(one.end_s - one.start_s, other.end_s - other.start_s)
