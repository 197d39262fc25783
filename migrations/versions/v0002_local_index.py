"""An archive counts its changes, for indexes that are derived from it; n-gram keys go, which such an index replaces."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the count, drop the keys."""
    op.add_column("archive", sa.Column("revision", sa.BigInteger, nullable=False, server_default="0"))
    op.drop_index("segment_keys_idx", "segment")
    op.drop_column("segment", "keys")


def downgrade() -> None:
    """Bring the column back; its keys come only with indexing anew."""
    op.add_column("segment", sa.Column("keys", postgresql.ARRAY(sa.SmallInteger), nullable=False, server_default="{}"))
    op.alter_column("segment", "keys", server_default=None)
    op.create_index(
        "segment_keys_idx", "segment", ["keys"], postgresql_using="gin", postgresql_with={"fastupdate": "off"}
    )
    op.drop_column("archive", "revision")
