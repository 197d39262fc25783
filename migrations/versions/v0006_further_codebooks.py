"""Codes may be tokens of further codebooks, which lie with the first."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; codes that are there are those of a product quantiser, and stay that."""
    op.add_column("codebook", sa.Column("further", sa.LargeBinary))


def downgrade() -> None:
    """Take the column away: an archive that has codes of further codebooks is damaged without it."""
    op.drop_column("codebook", "further")
