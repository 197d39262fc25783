"""Archives as the service makes them."""

from __future__ import annotations

from sqlalchemy import Connection

from indexer import intake, store
from service.deps import Backend


def open_or_make(connection: Connection, backend: Backend, name: str) -> store.ArchiveInfo:
    """The archive of that name, with the service's tokenizer where it is new. Raises BadArchiveName."""
    try:
        return store.get_archive(connection, name)
    except store.ArchiveNotFound:
        return make(connection, backend, name)


def make(connection: Connection, backend: Backend, name: str) -> store.ArchiveInfo:
    """An archive with the service's tokenizer. Raises BadArchiveName."""
    tokenizer = backend.search.tokenizer
    return intake.create_archive(connection, name, tokenizer.info, tokenizer.codebook.dim)
