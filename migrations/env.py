"""Runs the migrations on the connection that the caller hands over, in the caller's transaction."""

from __future__ import annotations

from alembic import context

from indexer.schema import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
with context.begin_transaction():
    context.run_migrations()
