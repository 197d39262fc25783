"""Whether an archive is as it was stored, and whether the files that it was made from are still there."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
from sqlalchemy import Connection, Row, text

from indexer import sources, store
from indexer.discover import Failure, hash_file, look
from indexer.segments import checksum
from model.codebook import Codebook, CodebookError
from model.tokens import TokenString, TokenStringError

PAGE = 200  # recordings read at a time


@dataclass(frozen=True)
class Problem:
    """Something that is not as it should be: a stable code, one line, and the recording that it is about, if one is.

    counters_wrong     the archive's counts of recordings and segments are not what there is
    codebook_damaged   the codebook in force is not the one that was stored, or is not there
    segments_missing   a recording has not all of its segments
    tokens_damaged     a token string is not the one that was stored, or does not fit its segment or the codebook
    codebook_differs   a recording has tokens of a codebook that is not in force: it is not searched
    """

    code: str
    message: str
    recording: str | None = None


@dataclass(frozen=True)
class Checked:
    """What was found in an archive.

    `missing` and `changed` are recordings whose file is gone or is another by now: they are searched, and cannot be
    made anew as they are. Two archives with the same `digest` hold the same tokens of the same recordings, whatever
    their ids and wherever they are.
    """

    archive: str
    recordings: int
    segments: int
    digest: str
    problems: list[Problem] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)

    @property
    def damaged(self) -> list[str]:
        """Names of the recordings that have a problem."""
        return sorted({problem.recording for problem in self.problems if problem.recording is not None})

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON."""
        return vars(self) | {"problems": [vars(problem) for problem in self.problems]}


def check(connection: Connection, name: str, *, files: bool = True, contents: bool = False) -> Checked:
    """Read all of an archive and compare it with its checksums; with `files` look for its files too.

    With `contents` these are read. What is read is the archive of one moment where the transaction sees to that
    (REPEATABLE READ). Raises ArchiveNotFound.
    """
    archive = store.get_archive(connection, name)
    problems: list[Problem] = []
    codebook = _codebook(connection, archive, problems)
    digest = hashlib.sha256(archive.tokenizer_sha256.encode())
    digest.update(b"" if codebook is None else codebook.sha256.encode())
    recordings = segments = 0
    missing: list[str] = []
    changed: list[str] = []
    for about, rows in _recordings(connection, archive.id):
        recordings, segments = recordings + 1, segments + len(rows)
        problems += _problems(about, rows, archive, codebook)
        digest.update(_line(about, rows))
        if files:
            state = _state_of_file(about, contents)
            if state is not None:
                (missing if state == "missing" else changed).append(about.name)
    if (archive.recordings, archive.segments) != (recordings, segments):
        counted = f"{archive.recordings} recordings and {archive.segments} segments are counted"
        problems.append(Problem("counters_wrong", f"{counted}, {recordings} and {segments} are there"))
    return Checked(name, recordings, segments, digest.hexdigest(), problems, missing, changed)


def recount(connection: Connection, archive_id: int) -> None:
    """Make an archive's counters what its recordings say, where they are not."""
    connection.execute(
        text("""
            UPDATE archive SET recordings = sums.recordings, segments = sums.segments, audio_s = sums.audio_s,
                revision = revision + 1
            FROM (
                SELECT count(*) AS recordings, coalesce(sum(segments), 0) AS segments,
                    coalesce(sum(duration_s), 0) AS audio_s FROM recording WHERE archive_id = :id
            ) AS sums WHERE archive.id = :id
            AND (archive.recordings, archive.segments) IS DISTINCT FROM (sums.recordings, sums.segments)
        """),
        {"id": archive_id},
    )


def restore_codebook(connection: Connection, codebook_id: int, codebook: Codebook) -> bool:
    """Write a damaged codebook's bytes anew where this is the one; whether it is."""
    values = {"id": codebook_id, "sha256": codebook.sha256, **store.codebook_bytes(codebook)}
    done = connection.execute(
        text("""
            UPDATE codebook SET centroids = :centroids, pq = :pq, further = :further
            WHERE id = :id AND sha256 = :sha256
        """),
        values,
    )
    return done.rowcount == 1


def _codebook(connection: Connection, archive: store.ArchiveInfo, problems: list[Problem]) -> Codebook | None:
    if archive.codebook_id is None:
        return None
    try:
        return store.load_codebook(connection, archive.codebook_id)
    except (store.StoreError, ValueError) as error:
        problems.append(Problem("codebook_damaged", str(error)))
        return None


def _recordings(connection: Connection, archive_id: int) -> Iterator[tuple[Row[Any], list[Row[Any]]]]:
    """Each recording by name, with its segments by position."""
    named = connection.execute(text("SELECT name, id FROM recording WHERE archive_id = :id"), {"id": archive_id})
    ids = [id_ for _, id_ in sorted(tuple(row) for row in named)]  # in an order that no collation changes
    for start in range(0, len(ids), PAGE):
        page = connection.execute(
            text("""
                SELECT id, name, path, bytes, mtime_ns, content_sha256, duration_s, segments, codebook_id, metadata,
                    external_id FROM recording WHERE id = ANY(:ids)
            """),
            {"ids": ids[start : start + PAGE]},
        ).all()
        rows = connection.execute(
            text("""
                SELECT recording_id, position, start_s, frames, tokens, checksum FROM segment
                WHERE recording_id = ANY(:ids) ORDER BY recording_id, position
            """),
            {"ids": [about.id for about in page]},
        )
        of = {id_: list(group) for id_, group in groupby(rows, key=lambda row: row.recording_id)}
        for about in sorted(page, key=lambda row: row.name):
            yield about, of.get(about.id, [])


def _problems(
    about: Row[Any], rows: list[Row[Any]], archive: store.ArchiveInfo, codebook: Codebook | None
) -> Iterator[Problem]:
    if about.codebook_id != archive.codebook_id:
        yield Problem("codebook_differs", "its tokens are of a codebook that is not in force", about.name)
    elif [row.position for row in rows] != list(range(about.segments)):
        message = f"{about.segments} segments are noted, {len(rows)} are there"
        yield Problem("segments_missing", message, about.name)
    for row in rows:
        wrong = _wrong(row, codebook)
        if wrong is not None:
            yield Problem("tokens_damaged", f"segment {row.position}: {wrong}", about.name)


def _wrong(row: Row[Any], codebook: Codebook | None) -> str | None:
    if checksum(row.tokens) != row.checksum:
        return "the checksum does not fit"
    try:
        string = TokenString.from_bytes(row.tokens)
    except TokenStringError as error:
        return str(error)
    if (string.offset, string.frames) != (row.start_s, row.frames):
        return f"tokens of {string.frames} frames at {string.offset:.2f} s, where {row.frames} are noted"
    if codebook is not None and len(string) and int(string.ids.max()) >= codebook.size:
        return f"token {int(string.ids.max())} of a codebook of {codebook.size}"
    if codebook is not None:
        try:
            codebook.check_codes(np.zeros((string.frames, 0), np.uint8) if string.pq is None else string.pq)
        except CodebookError as error:
            return str(error)
    return None


def _line(about: Row[Any], rows: list[Row[Any]]) -> bytes:
    """All that tells a recording from another, but for its ids and its place."""
    said = json.dumps([about.name, about.duration_s, about.metadata, about.external_id], sort_keys=True)
    digest = hashlib.sha256(said.encode())
    digest.update(about.content_sha256)
    for row in rows:
        digest.update(json.dumps([row.position, row.start_s, row.frames, len(row.tokens)]).encode())
        digest.update(row.tokens)
    return digest.digest()


def _state_of_file(about: Row[Any], contents: bool) -> str | None:
    """ "missing", "changed", or None where the file is the one that was indexed as far as that was looked into."""
    found = look(about.name, sources.place(os.fsdecode(about.path)))
    if isinstance(found, Failure):
        return "missing"
    if (found.bytes, found.mtime_ns) == (about.bytes, about.mtime_ns) and not contents:
        return None
    try:
        return None if hash_file(found.path) == about.content_sha256.hex() else "changed"
    except OSError:
        return "missing"
