"""What a database holds, in figures for somebody who looks after it."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text

JOB_STATES = ("queued", "running", "done", "failed", "cancelled")


@dataclass(frozen=True)
class ArchiveFigures:
    """An archive's size, and the tokenizer that it was made with."""

    name: str
    recordings: int
    hours: float
    tokenizer: str
    tokenizer_sha256: str


@dataclass(frozen=True)
class Overview:
    """The oldest `archives`, how many there are in all, jobs by state, and seconds that the oldest job has waited."""

    archives: tuple[ArchiveFigures, ...]
    archive_count: int
    jobs: dict[str, int]
    oldest_job_s: float


def look(connection: Connection, most_archives: int, within_s: float) -> Overview:
    """Read all of it; a query that takes longer than `within_s` seconds raises an error of the database."""
    connection.execute(text("SELECT set_config('statement_timeout', :ms, true)"), {"ms": str(round(within_s * 1e3))})
    archives = connection.execute(
        text("""
            SELECT archive.name, archive.recordings, archive.audio_s / 3600.0, tokenizer.name, tokenizer.sha256
            FROM archive JOIN tokenizer ON tokenizer.id = archive.tokenizer_id
            WHERE archive.beside_id IS NULL ORDER BY archive.id LIMIT :most
        """),
        {"most": most_archives},
    )
    figures = tuple(ArchiveFigures(*row) for row in archives)
    count = connection.execute(text("SELECT count(*) FROM archive WHERE beside_id IS NULL")).scalar_one()
    jobs = dict.fromkeys(JOB_STATES, 0)
    for state, number in connection.execute(text("SELECT state, count(*) FROM job GROUP BY state")):
        jobs[state] = number
    oldest_s = connection.execute(
        text("SELECT extract(epoch FROM clock_timestamp() - min(created_at)) FROM job WHERE state = 'queued'")
    ).scalar_one()
    return Overview(figures, count, jobs, float(oldest_s or 0.0))
