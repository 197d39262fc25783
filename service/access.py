"""Who may ask what: keys and their limits. Nobody needs a key on a loopback address while there is none.

The gate (service/gate.py) checks before a request's body is read; what routes declare here tells it what they need.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request, params
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.security.utils import get_authorization_scheme_param

from service import keys
from service.deps import Backend
from service.errors import KeyForbidden, KeyMissing
from service.keys import KeyInfo, Scope

_bearer = HTTPBearer(auto_error=False, description="an API key, as `sayagain keys create` prints it")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def key_of(authorization: str | None, backend: Backend) -> KeyInfo | None:
    """The key in a request's header, None where none is needed; it counts as used once.

    Raises KeyMissing (401), TooManyRequests (429), DatabaseError.
    """
    kind, text = get_authorization_scheme_param(authorization)
    with backend.connect() as connection:
        if kind.lower() != "bearer" or not text:
            if is_loopback(backend.settings.host) and not keys.any_exists(connection):
                return None
            raise KeyMissing("a key is needed: `Authorization: Bearer KEY`; `sayagain keys create` makes one")
        key = keys.find(connection, text)
    if key is None:
        raise KeyMissing("this key is unknown, or was revoked")
    backend.rates.count(key)
    return key


def require(key: KeyInfo | None, scope: Scope) -> None:
    """Raises KeyForbidden (403) where the key does not allow that much; without a key, where none is needed, all is."""
    if key is not None and key.scope < scope:
        held, wanted = key.scope.name.lower(), scope.name.lower()
        raise KeyForbidden(f"the key {key.name!r} has the scope {held}, where {wanted} is needed")


@dataclass(frozen=True)
class Needs:
    """What a route says of the keys that it is open to."""

    scope: Scope

    async def declare(
        self, request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
    ) -> None:
        """The dependency: it stands in the OpenAPI document, and fails where no gate has looked at the request."""
        require(request.state.key, self.scope)


def needed_by(dependencies: Iterable[params.Depends]) -> Scope:
    """The scope that a route with these dependencies needs; the least that there is where none is declared."""
    declared = (getattr(dependency.dependency, "__self__", None) for dependency in dependencies)
    return max((needs.scope for needs in declared if isinstance(needs, Needs)), default=min(Scope))


READ, WRITE, ADMIN = (Depends(Needs(scope).declare) for scope in Scope)
