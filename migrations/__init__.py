"""Alembic migrations: the one way in which the schema comes about and changes."""
