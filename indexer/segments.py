"""Segments: token strings as they are stored, with their checksums.

Every function takes a SQLAlchemy connection and leaves the transaction to the caller.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from indexer.store import SegmentDamaged


@dataclass(frozen=True)
class SegmentRow:
    """Which segment, its token string as bytes, and what their `checksum` was when they were stored."""

    recording_id: int
    position: int
    tokens: bytes
    checksum: int

    @property
    def intact(self) -> bool:
        """Whether the token string is the one that was stored."""
        return checksum(self.tokens) == self.checksum


@dataclass(frozen=True)
class MarkedSegment(SegmentRow):
    """A segment with the fingerprint of its recording."""

    fingerprint: int


# The first 64 bits of the content's hash: `RecordingInfo.fingerprint`.
_FINGERPRINT = "CAST(CAST('x' || encode(substring(content_sha256 FOR 8), 'hex') AS bit(64)) AS bigint)"


def segments_between(
    connection: Connection, recording_id: int, start_s: float, end_s: float, frame_s: float
) -> list[SegmentRow]:
    """The segments of a recording that have something of a stretch, in their order. Raises SegmentDamaged."""
    rows = connection.execute(
        text("""
            SELECT recording_id, position, tokens, checksum FROM segment
            WHERE recording_id = :id AND start_s < :end_s
            AND start_s + frames * CAST(:frame_s AS double precision) > :start_s
            ORDER BY position
        """),
        {"id": recording_id, "start_s": start_s, "end_s": end_s, "frame_s": frame_s},
    )
    found = [SegmentRow(*row) for row in rows]
    for row in found:
        if not row.intact:
            raise SegmentDamaged(f"segment {row.position} of recording {recording_id} is damaged: run `sayagain check`")
    return found


def fingerprints(connection: Connection, archive_id: int, codebook_id: int) -> tuple[int, dict[int, int]]:
    """An archive's revision, and the fingerprint of each recording with segments that this codebook made, by id."""
    rows = connection.execute(
        text(f"""
            SELECT archive.revision, recording.id, {_FINGERPRINT} FROM archive LEFT JOIN recording
            ON recording.archive_id = archive.id AND recording.codebook_id = :codebook_id
            AND recording.segments > 0 WHERE archive.id = :archive_id
        """),  # noqa: S608 (no value from outside is in it)
        {"archive_id": archive_id, "codebook_id": codebook_id},
    ).all()
    return (rows[0][0] if rows else 0), {row[1]: row[2] for row in rows if row[1] is not None}


def segments_of(connection: Connection, recordings: Sequence[int], codebook_id: int) -> list[MarkedSegment]:
    """All segments of recordings, each whole and as it is now; without those that are gone or of another codebook."""
    rows = connection.execute(
        text(f"""
            SELECT segment.recording_id, segment.position, segment.tokens, segment.checksum, {_FINGERPRINT}
            FROM segment JOIN recording ON recording.id = segment.recording_id
            WHERE segment.recording_id = ANY(:recordings) AND recording.codebook_id = :codebook_id
            ORDER BY segment.recording_id, segment.position
        """),  # noqa: S608 (no value from outside is in it)
        {"recordings": list(recordings), "codebook_id": codebook_id},
    )
    return [MarkedSegment(*row) for row in rows]


def checksum(tokens: bytes) -> int:
    """What is stored beside a token string: the first 32 bits of its SHA-256, as a signed number."""
    return int.from_bytes(hashlib.sha256(tokens).digest()[:4], "big", signed=True)
