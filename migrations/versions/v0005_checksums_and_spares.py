"""A checksum for each token string; an archive that is made, or was kept, beside another one knows which."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; what is there is taken to be well, and gets its sums."""
    op.add_column("segment", sa.Column("checksum", sa.Integer))
    op.execute("""
        UPDATE segment
        SET checksum = CAST(CAST('x' || encode(substring(sha256(tokens) FOR 4), 'hex') AS bit(32)) AS integer)
    """)
    op.alter_column("segment", "checksum", nullable=False)
    op.add_column(
        "archive",
        sa.Column("beside_id", sa.Integer, sa.ForeignKey("archive.id", ondelete="CASCADE", name="archive_beside_fkey")),
    )
    op.execute("""
        UPDATE archive SET beside_id = own.id FROM archive AS own
        WHERE archive.name = left(own.name, 191) || '~adapting' AND archive.id <> own.id
    """)


def downgrade() -> None:
    """Take the columns away; what stood beside an archive is one of its own again."""
    op.drop_column("archive", "beside_id")
    op.drop_column("segment", "checksum")
