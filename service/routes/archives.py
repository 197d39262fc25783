"""GET /v1/archives."""

from __future__ import annotations

from fastapi import APIRouter

from indexer import store
from service.deps import ConnectionDep
from service.schemas import ArchivesOut
from service.views import archive_out

router = APIRouter(prefix="/v1/archives", tags=["archives"])


@router.get("", operation_id="list_archives")
def list_archives(connection: ConnectionDep) -> ArchivesOut:
    """All archives with what is in force in each."""
    return ArchivesOut(archives=[archive_out(archive) for archive in store.list_archives(connection)])
