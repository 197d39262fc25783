"""What goes over HTTP and out of the command line: DESIGN's JSON, to the letter."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, StringConstraints

MAX_ID = 2**63 - 1  # what the database counts to
MAX_METADATA_BYTES = 16_384  # of one recording, as JSON


def _fits(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    size = len(json.dumps(value, allow_nan=False).encode("utf-8", "surrogatepass"))
    if size > MAX_METADATA_BYTES:
        raise ValueError(f"{size} bytes, where {MAX_METADATA_BYTES} are allowed")
    return value


Metadata = Annotated[dict[str, JsonValue], AfterValidator(_fits)]
ExternalId = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class Out(BaseModel):
    """What is answered."""

    model_config = ConfigDict(frozen=True)


class QueryOut(Out):
    """What was asked: durations and stretches in seconds."""

    duration: float
    speech: tuple[float, float]
    tokens: int
    tokenizer: str


class HitRecordingOut(Out):
    """The recording of a hit; `name` is the path relative to the folder that was indexed."""

    id: int
    name: str
    duration: float
    external_id: str | None = None


class HitOut(Out):
    """A place where the term is said, in seconds, with a score in [0, 1]."""

    rank: int
    recording: HitRecordingOut
    start: float
    end: float
    score: float
    edit_similarity: float
    dtw_similarity: float = Field(
        description="mean cosine along the best path, less how crowded it is about what is matched"
    )
    deep_similarity: float | None = Field(default=None, description="null where the hit was not rescored deep")


class TimingOut(Out):
    """Milliseconds per stage."""

    tokenize: float
    candidates: float
    alignment: float
    rescoring: float
    deep: float
    total: float


class SearchedOut(Out):
    """How much was searched."""

    recordings: int
    hours: float


class SearchOut(Out):
    """The answer to a query."""

    query: QueryOut
    hits: list[HitOut]
    timing_ms: TimingOut
    searched: SearchedOut


class ErrorBody(Out):
    """A stable code, one line for a person, and the field that is to blame where there is one."""

    code: str
    message: str
    field: str | None = None


class ErrorOut(Out):
    """Every error has this form."""

    error: ErrorBody


class MarkIn(BaseModel):
    """A hit of an earlier answer that somebody has judged: seconds [start, end) of a recording."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recording: int = Field(ge=0, le=MAX_ID)
    start: float = Field(ge=0.0)
    end: float = Field(gt=0.0)


class _RecordingRef(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    id: int = Field(ge=0, le=MAX_ID)


class ExportHitIn(BaseModel):
    """A hit to be exported, in the form in which it was answered: fields that do not matter may be there."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    recording: _RecordingRef
    start: float = Field(ge=0.0)
    end: float = Field(gt=0.0)
    score: float = Field(ge=0.0, le=1.0)


class ExportIn(BaseModel):
    """Hits to be exported, as they were answered, under the label of their term."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str = Field(default="hit", min_length=1, max_length=200)
    hits: list[ExportHitIn] = Field(max_length=10_000)


class BatchAnswerOut(Out):
    """The answer to one clip of a batch, or what is wrong with the clip; `file` is its name as it was sent."""

    file: str
    answer: SearchOut | None = None
    error: ErrorBody | None = None


class BatchOut(Out):
    """Answers in the order of the clips."""

    answers: list[BatchAnswerOut]
    total_ms: float
    queries_per_second: float


class ArchiveIn(BaseModel):
    """An archive to be made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=200)


class ArchiveOut(Out):
    """An archive and what is in force in it."""

    name: str
    recordings: int
    hours: float
    tokenizer: str
    tokenizer_sha256: str
    codebook: str | None
    codebook_size: int | None
    bytes: int


class ArchivesOut(Out):
    """All archives."""

    archives: list[ArchiveOut]


class RecordingOut(Out):
    """A recording of an archive; times in seconds."""

    id: int
    name: str
    duration: float
    bytes: int
    sha256: str
    indexed_at: datetime
    external_id: str | None = None
    metadata: dict[str, JsonValue] = Field(default_factory=dict)


class DescriptionIn(BaseModel):
    """What a recording's owner says of it; what is not there stays as it is, and null takes an id away."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metadata: Metadata | None = None
    external_id: ExternalId | None = None


class RecordingsOut(Out):
    """One page of recordings; `next_offset` is null on the last."""

    archive: str
    recordings: list[RecordingOut]
    next_offset: int | None


class PeaksOut(Out):
    """A waveform from `start` to `end` seconds: the lowest and the highest sample, in [-1, 1], of each equal part."""

    start: float
    end: float
    peaks: list[tuple[float, float]]


class HealthOut(Out):
    """The process is alive."""

    status: str = "ok"


class ReplicaOut(Out):
    """How far the read replica is behind: seconds, and bytes of the log where the primary can be asked."""

    state: str = Field(description="ok, behind or unavailable")
    lag_seconds: float | None = None
    lag_bytes: int | None = None


class ReadyOut(Out):
    """Whether searches would be answered, and if not, why; `warnings` are of what only some of them fail by."""

    ready: bool
    database: str = Field(description="ok, unavailable or outdated")
    tokenizer: str
    replica: ReplicaOut | None = Field(default=None, description="where one is set")
    reasons: list[str] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)
