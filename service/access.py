"""Who may ask what: keys and their limits. Nobody needs a key on a loopback address while there is none."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from service import keys
from service.deps import Backend, BackendDep
from service.errors import KeyForbidden, KeyMissing
from service.keys import KeyInfo, Scope

_bearer = HTTPBearer(auto_error=False, description="an API key, as `sayagain keys create` prints it")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def needs(scope: Scope) -> Any:
    """A route's dependency: the request has a key with that scope, where keys are needed.

    It raises KeyMissing (401), KeyForbidden (403), TooManyRequests (429).
    """

    def check(
        request: Request,
        backend: BackendDep,
        given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    ) -> None:
        if not hasattr(request.state, "key"):  # several scopes of one request are one use of the key
            request.state.key = _key_of(given, backend)
        key: KeyInfo | None = request.state.key
        if key is not None and key.scope < scope:
            held, wanted = key.scope.name.lower(), scope.name.lower()
            raise KeyForbidden(f"the key {key.name!r} has the scope {held}, where {wanted} is needed")

    return Depends(check)


def _key_of(given: HTTPAuthorizationCredentials | None, backend: Backend) -> KeyInfo | None:
    """The key of a request, None where none is needed. Raises KeyMissing, TooManyRequests."""
    with backend.connect() as connection:
        if given is None:
            if is_loopback(backend.settings.host) and not keys.any_exists(connection):
                return None
            raise KeyMissing("a key is needed: `Authorization: Bearer KEY`; `sayagain keys create` makes one")
        key = keys.find(connection, given.credentials)
    if key is None:
        raise KeyMissing("this key is unknown, or was revoked")
    backend.rates.count(key)
    return key


READ, WRITE, ADMIN = (needs(scope) for scope in Scope)
