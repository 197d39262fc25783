"""API keys: made, listed, revoked, and looked up. Only their hashes are stored; a key's text is shown once."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum

from sqlalchemy import Connection, func, insert, select, update

from indexer.schema import ApiKey
from service.errors import BadRequest, KeyNotFound

PREFIX = "sayagain_"
NAME_CHARACTERS = 100
RANDOM_BYTES = 32  # too many to guess: a plain hash of them is as safe as a slow one


class Scope(IntEnum):
    """What a key allows; each allows all before it too."""

    READ = 1
    WRITE = 2
    ADMIN = 3


@dataclass(frozen=True)
class KeyInfo:
    """A key without its text; `per_minute` requests are allowed, None: any number."""

    id: int
    name: str
    scope: Scope
    per_minute: int | None
    created_at: datetime
    revoked_at: datetime | None


_COLUMNS = (ApiKey.id, ApiKey.name, ApiKey.scope, ApiKey.per_minute, ApiKey.created_at, ApiKey.revoked_at)


def create(connection: Connection, name: str, scope: Scope, per_minute: int | None = None) -> str:
    """Make a key; its text, which cannot be had again. Raises BadRequest for the name."""
    if not name.strip() or len(name) > NAME_CHARACTERS or not name.isprintable():
        raise BadRequest(f"a key's name has 1 to {NAME_CHARACTERS} characters that can be printed", "name")
    key = PREFIX + secrets.token_urlsafe(RANDOM_BYTES)
    values = {"name": name, "sha256": _hash(key), "scope": scope.name.lower(), "per_minute": per_minute}
    connection.execute(insert(ApiKey).values(values))
    return key


def list_keys(connection: Connection) -> list[KeyInfo]:
    """All keys, also those that were revoked, by age."""
    return [_info(*row) for row in connection.execute(select(*_COLUMNS).order_by(ApiKey.id))]


def revoke(connection: Connection, key_id: int) -> None:
    """From now on the key opens nothing. Raises KeyNotFound where there is none, or it was revoked before."""
    statement = update(ApiKey).where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None)).values(revoked_at=func.now())
    if connection.execute(statement).rowcount == 0:
        raise KeyNotFound(f"there is no key {key_id} that could be revoked")


def find(connection: Connection, key: str) -> KeyInfo | None:
    """The key of that text, None where there is none or it was revoked."""
    row = connection.execute(
        select(*_COLUMNS).where(ApiKey.sha256 == _hash(key), ApiKey.revoked_at.is_(None))
    ).one_or_none()
    return None if row is None else _info(*row)


def any_exists(connection: Connection) -> bool:
    """Whether a key was ever made: to revoke the last one opens nothing."""
    return connection.execute(select(ApiKey.id).limit(1)).one_or_none() is not None


def _info(
    number: int, name: str, scope: str, per_minute: int | None, created_at: datetime, revoked_at: datetime | None
) -> KeyInfo:
    return KeyInfo(number, name, Scope[scope.upper()], per_minute, created_at, revoked_at)


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
