"""Metadata and ids that owners give to recordings, the revision that brought each; jobs; watches with their hits."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def _when(name: str, *, now: bool = False) -> sa.Column[sa.DateTime]:
    default = sa.func.now() if now else None
    return sa.Column(name, sa.TIMESTAMP(timezone=True), nullable=not now, server_default=default)


def _id() -> sa.Column[int]:
    return sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True)


def _of(table: str, kind: type[sa.types.TypeEngine[int]] = sa.BigInteger) -> sa.Column[int]:
    """A reference that goes with what it refers to."""
    return sa.Column(f"{table}_id", kind, sa.ForeignKey(f"{table}.id", ondelete="CASCADE"), nullable=False)


def upgrade() -> None:
    """Add the columns, make the tables."""
    op.add_column("recording", sa.Column("metadata", postgresql.JSONB, nullable=False, server_default="{}"))
    op.add_column("recording", sa.Column("external_id", sa.Text))
    op.add_column("recording", sa.Column("revision", sa.BigInteger, nullable=False, server_default="0"))
    op.create_unique_constraint("recording_external_id_key", "recording", ["archive_id", "external_id"])
    op.create_table(
        "job",
        _id(),
        _of("archive", sa.Integer),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False, server_default="queued"),
        sa.Column("parameters", postgresql.JSONB, nullable=False),
        sa.Column("progress", postgresql.JSONB),
        sa.Column("report", postgresql.JSONB),
        sa.Column("error", postgresql.JSONB),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("cancel_wanted", sa.Boolean, nullable=False, server_default="false"),
        _when("created_at", now=True),
        _when("run_after", now=True),
        _when("started_at"),
        _when("finished_at"),
        sa.CheckConstraint("state IN ('queued', 'running', 'done', 'failed', 'cancelled')", name="job_state_check"),
    )
    op.create_index("job_archive_idx", "job", ["archive_id"])
    op.create_index("job_open_idx", "job", ["id"], postgresql_where=sa.text("state IN ('queued', 'running')"))
    op.create_table(
        "watch",
        _id(),
        _of("archive", sa.Integer),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("examples", postgresql.ARRAY(sa.LargeBinary), nullable=False),
        sa.Column("stretches", postgresql.JSONB, nullable=False),
        sa.Column("min_score", sa.Double, nullable=False),
        sa.Column("webhook", sa.Text),
        sa.Column("secret", sa.LargeBinary),
        sa.Column("seen_revision", sa.BigInteger, nullable=False),
        _when("created_at", now=True),
        sa.UniqueConstraint("archive_id", "name"),
    )
    op.create_table(
        "watch_hit",
        _id(),
        _of("watch"),
        _of("recording"),
        sa.Column("start_s", sa.Double, nullable=False),
        sa.Column("end_s", sa.Double, nullable=False),
        sa.Column("score", sa.Double, nullable=False),
        _when("found_at", now=True),
    )
    op.create_index("watch_hit_watch_idx", "watch_hit", ["watch_id", "id"])
    op.create_index("watch_hit_recording_idx", "watch_hit", ["recording_id"])
    op.create_table(
        "delivery",
        _id(),
        _of("watch"),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("problem", sa.Text),
        _when("created_at", now=True),
        _when("next_at", now=True),
        _when("delivered_at"),
        _when("failed_at"),
    )
    op.create_index(
        "delivery_open_idx",
        "delivery",
        ["next_at"],
        postgresql_where=sa.text("delivered_at IS NULL AND failed_at IS NULL"),
    )
    op.create_index("delivery_watch_idx", "delivery", ["watch_id"])


def downgrade() -> None:
    """Drop them: jobs that wait are forgotten."""
    for table in ("delivery", "watch_hit", "watch", "job"):
        op.drop_table(table)
    op.drop_constraint("recording_external_id_key", "recording")
    for column in ("revision", "external_id", "metadata"):
        op.drop_column("recording", column)
