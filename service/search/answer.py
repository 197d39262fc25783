"""What is asked and what is answered."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from indexer.recordings import RecordingInfo
from service.clips import Clip
from service.search.query import Query, Reference

STAGES = ("tokenize", "candidates", "alignment", "rescoring", "deep")


@dataclass(frozen=True)
class Request:
    """A question: examples of one term, an archive's name, and what to answer.

    An example is a clip, or a stretch of a recording of the archive, which is no hit itself. Recordings whose names are
    in `exclude` are as if they were not there; so are, with `only`, those whose ids are not in it, and with `where`
    those whose metadata do not contain it. `right` and `wrong` are hits of an earlier answer that somebody has
    judged: the right ones are examples too, the wrong ones are no hits any more. With `deep` the first hits' sound is
    read again and compared by another tokenizer.
    """

    examples: Sequence[Clip | Reference]
    archive: str
    limit: int = 20
    min_score: float = 0.0
    exact: bool = False
    exclude: frozenset[str] = frozenset()
    only: frozenset[int] | None = None
    where: Mapping[str, Any] | None = None
    right: Sequence[Reference] = ()
    wrong: Sequence[Reference] = ()
    deep: bool = False


@dataclass(frozen=True)
class Hit:
    """A place where the term is said, in seconds.

    The score rests on `similarity`, the mean of what `rescoring` found for all examples, and `distance`, how many
    spreads that lies above their background; `edit_similarity` and `dtw_similarity` are those of the query;
    `deep_similarity` is that of deep rescoring, None without it.
    """

    recording: RecordingInfo
    start_s: float
    end_s: float
    score: float
    edit_similarity: float
    dtw_similarity: float
    distance: float
    similarity: float
    deep_similarity: float | None = None


@dataclass(frozen=True)
class Timing:
    """Milliseconds per stage."""

    tokenize: float
    candidates: float
    alignment: float
    rescoring: float
    deep: float
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


class Clock:
    """Adds up milliseconds under the name of the stage that is on."""

    def __init__(self) -> None:
        self.ms = dict.fromkeys(STAGES, 0.0)
        self._last = time.perf_counter()

    def resume(self) -> None:
        """What has passed since the last lap counts to nothing: others had their turn."""
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """What has passed since the last lap counts to a stage."""
        now = time.perf_counter()
        self.ms[stage] += (now - self._last) * 1e3
        self._last = now

    def timing(self) -> Timing:
        """So far."""
        rounded = {stage: round(ms, 2) for stage, ms in self.ms.items()}
        return Timing(**rounded, total=round(sum(self.ms.values()), 2))
