"""The tables, as SQLAlchemy sees them; the migrations make them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TIMESTAMP
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """All tables."""


class Tokenizer(Base):
    """A tokenizer that archives have been made with."""

    __tablename__ = "tokenizer"

    id: Mapped[int] = mapped_column(Integer, Identity(), primary_key=True)
    sha256: Mapped[str] = mapped_column(Text, unique=True)
    name: Mapped[str] = mapped_column(Text)
    version: Mapped[str] = mapped_column(Text)
    frame_seconds: Mapped[float] = mapped_column(Double)
    dim: Mapped[int] = mapped_column(Integer)
    created_at: Mapped[datetime] = mapped_column(TIMESTAMP(timezone=True), server_default=func.now())


class Archive(Base):
    """A named collection; its counters change in the transaction that changes what they count."""

    __tablename__ = "archive"
    __table_args__ = (
        ForeignKeyConstraint(
            ["codebook_id"], ["codebook.id"], name="archive_codebook_id_fkey",
            use_alter=True, deferrable=True, initially="DEFERRED",
        ),
    )  # fmt: skip

    id: Mapped[int] = mapped_column(Integer, Identity(), primary_key=True)
    name: Mapped[str] = mapped_column(Text, unique=True)
    beside_id: Mapped[int | None] = mapped_column(  # the archive that this is to replace, or was replaced by
        ForeignKey("archive.id", ondelete="CASCADE", name="archive_beside_fkey")
    )
    tokenizer_id: Mapped[int] = mapped_column(ForeignKey("tokenizer.id"))
    codebook_id: Mapped[int | None] = mapped_column(Integer)  # the one in force
    recordings: Mapped[int] = mapped_column(BigInteger, server_default="0")
    segments: Mapped[int] = mapped_column(BigInteger, server_default="0")
    audio_s: Mapped[float] = mapped_column(Double, server_default="0")
    revision: Mapped[int] = mapped_column(BigInteger, server_default="0")  # rises with every change of its recordings
    created_at: Mapped[datetime] = mapped_column(TIMESTAMP(timezone=True), server_default=func.now())


class Codebook(Base):
    """Centroids of an archive and what codes are made with, float32, little-endian."""

    __tablename__ = "codebook"
    __table_args__ = (UniqueConstraint("archive_id", "sha256"),)

    id: Mapped[int] = mapped_column(Integer, Identity(), primary_key=True)
    archive_id: Mapped[int] = mapped_column(ForeignKey("archive.id", ondelete="CASCADE"))
    kind: Mapped[str] = mapped_column(Text)  # archive: fitted to it; tokenizer: the tokenizer's own
    sha256: Mapped[str] = mapped_column(Text)
    size: Mapped[int] = mapped_column(Integer)
    dim: Mapped[int] = mapped_column(Integer)
    centroids: Mapped[bytes] = mapped_column(LargeBinary)  # [size, dim]
    pq: Mapped[bytes | None] = mapped_column(LargeBinary)  # [pq_parts, pq_size, dim / pq_parts]
    pq_parts: Mapped[int] = mapped_column(SmallInteger)
    pq_size: Mapped[int] = mapped_column(SmallInteger)
    further: Mapped[bytes | None] = mapped_column(LargeBinary)  # [M, size, dim]
    switch_penalty: Mapped[float] = mapped_column(Double)
    parameters: Mapped[dict[str, Any]] = mapped_column(JSONB)
    created_at: Mapped[datetime] = mapped_column(TIMESTAMP(timezone=True), server_default=func.now())


class Recording(Base):
    """One audio file of an archive."""

    __tablename__ = "recording"
    __table_args__ = (
        UniqueConstraint("archive_id", "name"),
        UniqueConstraint("archive_id", "external_id", name="recording_external_id_key"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=False), primary_key=True)
    archive_id: Mapped[int] = mapped_column(ForeignKey("archive.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(Text)
    path: Mapped[bytes] = mapped_column(LargeBinary)  # as the file system has it: not every path is text
    size_bytes: Mapped[int] = mapped_column("bytes", BigInteger)
    mtime_ns: Mapped[int] = mapped_column(BigInteger)
    content_sha256: Mapped[bytes] = mapped_column(LargeBinary)
    duration_s: Mapped[float] = mapped_column(Double)
    segments: Mapped[int] = mapped_column(Integer)
    codebook_id: Mapped[int] = mapped_column(ForeignKey("codebook.id", deferrable=True, initially="DEFERRED"))
    indexed_at: Mapped[datetime] = mapped_column(TIMESTAMP(timezone=True), server_default=func.now())
    about: Mapped[dict[str, Any]] = mapped_column("metadata", JSONB, server_default="{}")  # its owner's
    external_id: Mapped[str | None] = mapped_column(Text)  # its owner's
    revision: Mapped[int] = mapped_column(BigInteger, server_default="0")  # the archive's that brought what it is now


class ApiKey(Base):
    """A key for the HTTP interface: `sha256` of its text, which nobody knows again."""

    __tablename__ = "api_key"

    id: Mapped[int] = mapped_column(Integer, Identity(), primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    sha256: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    scope: Mapped[str] = mapped_column(Text)  # read, write or admin
    per_minute: Mapped[int | None] = mapped_column(Integer)  # requests; none: no limit
    created_at: Mapped[datetime] = mapped_column(TIMESTAMP(timezone=True), server_default=func.now())
    revoked_at: Mapped[datetime | None] = mapped_column(TIMESTAMP(timezone=True))


class Segment(Base):
    """A stretch of a recording: `tokens` is TokenString.to_bytes()."""

    __tablename__ = "segment"
    __table_args__ = (Index("segment_archive_idx", "archive_id"),)

    # Wide columns first: no bytes are lost between them.
    recording_id: Mapped[int] = mapped_column(ForeignKey("recording.id", ondelete="CASCADE"), primary_key=True)
    start_s: Mapped[float] = mapped_column(Double)
    position: Mapped[int] = mapped_column(Integer, primary_key=True)
    archive_id: Mapped[int] = mapped_column(Integer)
    frames: Mapped[int] = mapped_column(Integer)
    tokens: Mapped[bytes] = mapped_column(LargeBinary)
    checksum: Mapped[int] = mapped_column(Integer)  # segments.checksum of the tokens


class Job(Base):
    """Work that somebody asked for over HTTP; whoever does it holds an advisory lock as long as it does."""

    __tablename__ = "job"
    __table_args__ = (
        CheckConstraint("state IN ('queued', 'running', 'done', 'failed', 'cancelled')", name="job_state_check"),
        Index("job_archive_idx", "archive_id"),
        Index("job_open_idx", "id", postgresql_where=text("state IN ('queued', 'running')")),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    archive_id: Mapped[int] = mapped_column(ForeignKey("archive.id", ondelete="CASCADE"))
    kind: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(Text, server_default="queued")
    parameters: Mapped[dict[str, Any]] = mapped_column(JSONB)
    progress: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    report: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    error: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    attempts: Mapped[int] = mapped_column(Integer, server_default="0")
    cancel_wanted: Mapped[bool] = mapped_column(Boolean, server_default="false")
    created_at: Mapped[datetime] = mapped_column(TIMESTAMP(timezone=True), server_default=func.now())
    run_after: Mapped[datetime] = mapped_column(TIMESTAMP(timezone=True), server_default=func.now())
    started_at: Mapped[datetime | None] = mapped_column(TIMESTAMP(timezone=True))
    finished_at: Mapped[datetime | None] = mapped_column(TIMESTAMP(timezone=True))


class Watch(Base):
    """A stored query: `examples` are WAV files, `stretches` the seconds [start, end) of the term in each."""

    __tablename__ = "watch"
    __table_args__ = (UniqueConstraint("archive_id", "name"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    archive_id: Mapped[int] = mapped_column(ForeignKey("archive.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(Text)
    examples: Mapped[list[bytes]] = mapped_column(ARRAY(LargeBinary))
    stretches: Mapped[list[Any]] = mapped_column(JSONB)
    min_score: Mapped[float] = mapped_column(Double)
    webhook: Mapped[str | None] = mapped_column(Text)
    secret: Mapped[bytes | None] = mapped_column(LargeBinary)  # signs what is posted: it cannot be a hash
    seen_revision: Mapped[int] = mapped_column(BigInteger)  # of the archive, up to which recordings were searched
    created_at: Mapped[datetime] = mapped_column(TIMESTAMP(timezone=True), server_default=func.now())


class WatchHit(Base):
    """A place that a watch has found."""

    __tablename__ = "watch_hit"
    __table_args__ = (
        Index("watch_hit_watch_idx", "watch_id", "id"),
        Index("watch_hit_recording_idx", "recording_id"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    watch_id: Mapped[int] = mapped_column(ForeignKey("watch.id", ondelete="CASCADE"))
    recording_id: Mapped[int] = mapped_column(ForeignKey("recording.id", ondelete="CASCADE"))
    start_s: Mapped[float] = mapped_column(Double)
    end_s: Mapped[float] = mapped_column(Double)
    score: Mapped[float] = mapped_column(Double)
    found_at: Mapped[datetime] = mapped_column(TIMESTAMP(timezone=True), server_default=func.now())


class Delivery(Base):
    """What is to be posted to a watch's webhook, the same bytes each time."""

    __tablename__ = "delivery"
    __table_args__ = (
        Index(
            "delivery_open_idx", "next_at", postgresql_where=text("delivered_at IS NULL AND failed_at IS NULL")
        ),
        Index("delivery_watch_idx", "watch_id"),
    )  # fmt: skip

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    watch_id: Mapped[int] = mapped_column(ForeignKey("watch.id", ondelete="CASCADE"))
    body: Mapped[bytes] = mapped_column(LargeBinary)
    attempts: Mapped[int] = mapped_column(Integer, server_default="0")
    problem: Mapped[str | None] = mapped_column(Text)  # what was wrong last time
    created_at: Mapped[datetime] = mapped_column(TIMESTAMP(timezone=True), server_default=func.now())
    next_at: Mapped[datetime] = mapped_column(TIMESTAMP(timezone=True), server_default=func.now())
    delivered_at: Mapped[datetime | None] = mapped_column(TIMESTAMP(timezone=True))
    failed_at: Mapped[datetime | None] = mapped_column(TIMESTAMP(timezone=True))
