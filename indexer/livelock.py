"""Who may change what an archive's segments are made with, while others add to it in short transactions."""

from __future__ import annotations

from typing import Literal

from sqlalchemy import Connection, text

_SWITCH = 7_295_319  # first half of the key of the lock; the archive's id is the other


def lock_switch(connection: Connection, archive_id: int, role: Literal["stores", "switches"]) -> None:
    """Until the transaction ends an archive's codebook and tokenizer stay what they are, or only this one changes them.

    Waits for whoever is at it. It comes before any lock of a row, so that nobody waits for another in a circle.
    """
    function = "pg_advisory_xact_lock_shared" if role == "stores" else "pg_advisory_xact_lock"
    connection.execute(text(f"SELECT {function}(:space, :id)"), {"space": _SWITCH, "id": archive_id})
