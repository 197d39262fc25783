"""Archives: made, listed, shown and deleted."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from sqlalchemy import Connection

from indexer import store
from service import archives
from service.access import ADMIN, WRITE
from service.deps import BackendDep
from service.jobs import uploads
from service.routes.responses import errors
from service.schemas import ArchiveIn, ArchiveOut, ArchivesOut
from service.views import archive_out

router = APIRouter(prefix="/v1/archives", tags=["archives"])

NamePath = Annotated[str, Path(description="of an archive; a slash in it is written as it is")]


@router.get("", operation_id="list_archives", responses=errors(503))
def list_archives(backend: BackendDep) -> ArchivesOut:
    """All archives with what is in force in each."""
    with backend.reading() as connection:
        listed = [archive for archive in store.list_archives(connection) if archive.beside_id is None]
    return ArchivesOut(archives=[archive_out(archive) for archive in listed])


@router.post(
    "",
    operation_id="create_archive",
    status_code=201,
    responses=errors(409, 422, 503),
    dependencies=[WRITE],
)
def create(backend: BackendDep, wanted: ArchiveIn) -> ArchiveOut:
    """An empty archive of the service's tokenizer, to index recordings into."""
    with backend.connect() as connection:
        if any(archive.name == wanted.name for archive in store.list_archives(connection)):
            raise store.ArchiveNameTaken(f"there is an archive named {wanted.name!r} already")
        archives.make(connection, backend, wanted.name)
        connection.commit()
        return _shown(connection, wanted.name)


@router.get("/{name:path}", operation_id="show_archive", responses=errors(404, 503))
def show(backend: BackendDep, name: NamePath) -> ArchiveOut:
    """One archive."""
    with backend.reading() as connection:
        return _shown(connection, name)


@router.delete(
    "/{name:path}",
    operation_id="delete_archive",
    status_code=204,
    responses=errors(404, 409, 503),
    dependencies=[ADMIN],
)
def delete(backend: BackendDep, name: NamePath) -> None:
    """Delete an archive with all that was made of its recordings; audio files stay, but for those that were sent in."""
    home = backend.settings.home_path
    with backend.connect() as connection:
        sent = uploads.sent_to(connection, home, store.get_archive(connection, name).id)
        store.delete_archive(connection, name)
        connection.commit()
    uploads.drop(home, sent)


def _shown(connection: Connection, name: str) -> ArchiveOut:
    found = store.get_archive(connection, name)
    return next(archive_out(archive) for archive in store.list_archives(connection) if archive.id == found.id)
