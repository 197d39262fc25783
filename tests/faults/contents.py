"""What an archive holds, so that two of them can be compared: a hash of every row, without what depends on when."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from tests.faults.errors import Difference

# Numbers that are given out in turn, moments, and where the files happened to lie.
_ARCHIVE_PASSING = ["id", "name", "tokenizer_id", "codebook_id", "revision", "created_at", "audio_s"]
_CODEBOOK_PASSING = ["id", "archive_id", "created_at"]
_RECORDING_PASSING = ["id", "archive_id", "codebook_id", "revision", "indexed_at", "path", "mtime_ns"]
_SEGMENT_PASSING = ["recording_id", "archive_id"]


@dataclass(frozen=True)
class Contents:
    """An archive: its own row, its codebooks, and a hash of each recording with its segments, by name."""

    archive: dict[str, Any]
    codebooks: list[dict[str, Any]]
    recordings: dict[str, str]

    @property
    def sha256(self) -> str:
        """Of all of it."""
        whole = [self.archive, self.codebooks, self.recordings]
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()

    def without(self, *names: str) -> dict[str, str]:
        """The hashes of all recordings but these."""
        return {name: sha256 for name, sha256 in self.recordings.items() if name not in names}


def contents(connection: Connection, archive: str) -> Contents:
    """All of an archive. Raises Difference where its rows do not go together."""
    asked = {
        "name": archive, "archive": _ARCHIVE_PASSING, "codebook": _CODEBOOK_PASSING, "recording": _RECORDING_PASSING,
        "segment": _SEGMENT_PASSING,
    }  # fmt: skip
    own = connection.execute(
        text("""
            SELECT id, revision, to_jsonb(archive) - CAST(:archive AS text[]) AS about, recordings, segments, audio_s,
                (SELECT sha256 FROM tokenizer WHERE id = tokenizer_id) AS tokenizer,
                (SELECT sha256 FROM codebook WHERE id = codebook_id) AS codebook
            FROM archive WHERE name = :name
        """),
        asked,
    ).one()
    codebooks = connection.execute(
        text("""
            SELECT to_jsonb(codebook) - CAST(:codebook AS text[]) FROM codebook WHERE archive_id = :id ORDER BY sha256
        """),
        asked | {"id": own.id},
    )
    rows = connection.execute(
        text("""
            SELECT recording.name, recording.revision, recording.segments, duration_s, count(segment.position) AS found,
                to_jsonb(recording) - CAST(:recording AS text[]) AS about, codebook.sha256 AS codebook,
                string_agg(
                    md5(CAST(to_jsonb(segment) - CAST(:segment AS text[]) AS text)), '' ORDER BY segment.position
                ) AS parts
            FROM recording JOIN codebook ON codebook.id = recording.codebook_id
            LEFT JOIN segment ON segment.recording_id = recording.id
            WHERE recording.archive_id = :id GROUP BY recording.id, codebook.sha256
        """),
        asked | {"id": own.id},
    ).all()
    stray = connection.execute(
        text("SELECT count(*) FROM segment WHERE NOT EXISTS (SELECT FROM recording WHERE id = recording_id)")
    ).scalar_one()
    revisions = {row.revision for row in rows}
    for wrong, what in (
        (len({row.name for row in rows}) != len(rows), "a recording is there twice"),
        (any(row.found != row.segments for row in rows), "a recording has not the segments that it says"),
        (stray, "segments without a recording"),
        (own.recordings != len(rows), f"{own.recordings} recordings are counted, {len(rows)} are there"),
        (own.segments != sum(row.found for row in rows), "the segments are counted wrongly"),
        (abs(own.audio_s - sum(row.duration_s for row in rows)) > 1e-6, "the seconds are counted wrongly"),
        (len(revisions) != len(rows) or max(revisions, default=0) > own.revision, "revisions do not rise"),
    ):
        if wrong:
            raise Difference(what)
    about = own.about | {"tokenizer": own.tokenizer, "codebook": own.codebook, "audio_s": round(own.audio_s, 6)}
    recordings = {
        row.name: hashlib.sha256(json.dumps([row.about, row.codebook, row.parts], sort_keys=True).encode()).hexdigest()
        for row in sorted(rows, key=lambda row: row.name)
    }
    return Contents(about, list(codebooks.scalars()), recordings)


def compare(found: Contents, expected: Contents) -> None:
    """Raises Difference where an archive is not what it ought to be."""
    if found.sha256 == expected.sha256:
        return
    lacking = sorted(expected.recordings.keys() - found.recordings.keys())
    surplus = sorted(found.recordings.keys() - expected.recordings.keys())
    other = sorted(n for n, sha in found.recordings.items() if expected.recordings.get(n, sha) != sha)
    book = "" if found.codebooks == expected.codebooks else "; another codebook"
    row = "" if found.archive == expected.archive else f"; {found.archive} where {expected.archive} ought to be"
    raise Difference(f"lacking {lacking}, surplus {surplus}, different {other}{book}{row}")
