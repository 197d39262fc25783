"""Archives, their codebooks, recordings and segments."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def _when(name: str) -> sa.Column[sa.DateTime]:
    return sa.Column(name, sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now())


def upgrade() -> None:
    """Make the first tables."""
    op.create_table(
        "tokenizer",
        sa.Column("id", sa.Integer, sa.Identity(), primary_key=True),
        sa.Column("sha256", sa.Text, nullable=False, unique=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("frame_seconds", sa.Double, nullable=False),
        sa.Column("dim", sa.Integer, nullable=False),
        _when("created_at"),
    )
    op.create_table(
        "archive",
        sa.Column("id", sa.Integer, sa.Identity(), primary_key=True),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("tokenizer_id", sa.Integer, sa.ForeignKey("tokenizer.id"), nullable=False),
        sa.Column("codebook_id", sa.Integer),
        sa.Column("recordings", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("segments", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("audio_s", sa.Double, nullable=False, server_default="0"),
        _when("created_at"),
    )
    op.create_table(
        "codebook",
        sa.Column("id", sa.Integer, sa.Identity(), primary_key=True),
        sa.Column("archive_id", sa.Integer, sa.ForeignKey("archive.id", ondelete="CASCADE"), nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("dim", sa.Integer, nullable=False),
        sa.Column("centroids", sa.LargeBinary, nullable=False),
        sa.Column("pq", sa.LargeBinary),
        sa.Column("pq_parts", sa.SmallInteger, nullable=False),
        sa.Column("pq_size", sa.SmallInteger, nullable=False),
        sa.Column("switch_penalty", sa.Double, nullable=False),
        sa.Column("parameters", postgresql.JSONB, nullable=False),
        _when("created_at"),
        sa.UniqueConstraint("archive_id", "sha256"),
        sa.CheckConstraint("kind IN ('archive', 'tokenizer')", name="codebook_kind_check"),
    )
    # Deferred: an archive goes together with its codebooks and recordings, in whatever order.
    op.create_foreign_key(
        "archive_codebook_id_fkey",
        "archive",
        "codebook",
        ["codebook_id"],
        ["id"],
        deferrable=True,
        initially="DEFERRED",
    )
    op.create_table(
        "recording",
        sa.Column("id", sa.BigInteger, sa.Identity(always=False), primary_key=True),
        sa.Column("archive_id", sa.Integer, sa.ForeignKey("archive.id", ondelete="CASCADE"), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("path", sa.LargeBinary, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("mtime_ns", sa.BigInteger, nullable=False),
        sa.Column("content_sha256", sa.LargeBinary, nullable=False),
        sa.Column("duration_s", sa.Double, nullable=False),
        sa.Column("segments", sa.Integer, nullable=False),
        sa.Column(
            "codebook_id",
            sa.Integer,
            sa.ForeignKey("codebook.id", deferrable=True, initially="DEFERRED"),
            nullable=False,
        ),
        _when("indexed_at"),
        sa.UniqueConstraint("archive_id", "name"),
    )
    op.create_table(
        "segment",
        sa.Column("recording_id", sa.BigInteger, sa.ForeignKey("recording.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("start_s", sa.Double, nullable=False),
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("archive_id", sa.Integer, nullable=False),
        sa.Column("frames", sa.Integer, nullable=False),
        sa.Column("tokens", sa.LargeBinary, nullable=False),
        sa.Column("keys", postgresql.ARRAY(sa.SmallInteger), nullable=False),
    )
    op.create_index("segment_archive_idx", "segment", ["archive_id"])
    # Without fastupdate: the list of rows not yet sorted in would leave its pages behind, three times the index itself.
    op.create_index(
        "segment_keys_idx", "segment", ["keys"], postgresql_using="gin", postgresql_with={"fastupdate": "off"}
    )
    # Numbers like these do not compress: trying costs time on every row.
    for table, column in (("segment", "tokens"), ("codebook", "centroids"), ("codebook", "pq")):
        op.execute(f"ALTER TABLE {table} ALTER COLUMN {column} SET STORAGE EXTERNAL")


def downgrade() -> None:
    """Drop them."""
    op.drop_constraint("archive_codebook_id_fkey", "archive")
    for table in ("segment", "recording", "codebook", "archive", "tokenizer"):
        op.drop_table(table)
