"""Webhooks: what a watch has found is posted, signed, and posted again until it is taken.

Signatures are those of Standard Webhooks (standardwebhooks.com, version 1.0.0): headers `webhook-id`,
`webhook-timestamp` and `webhook-signature`, which is "v1," and the base64 of HMAC-SHA256 over "id.timestamp.body".
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import logging
import socket
import time
from urllib.parse import urlsplit

import httpx
from sqlalchemy import Connection, text

from service.errors import WebhookForbidden

TIMEOUT_S = 10.0
WAITS_S = (5.0, 30.0, 120.0, 600.0, 3_600.0, 10_800.0, 21_600.0, 43_200.0)  # before each further attempt
URL_CHARACTERS = 2_000
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # IPv4 addresses behind a translator (RFC 6052)
PREFIX = "whsec_"  # of a secret as text

log = logging.getLogger(__name__)


def check_url(url: str, *, private: bool) -> None:
    """Raises WebhookForbidden where a URL cannot be posted to, or may not be.

    Names are looked up again before each post: what a name stands for may change.
    """
    if len(url) > URL_CHARACTERS or not url.isascii() or not url.isprintable() or " " in url:
        raise WebhookForbidden(f"a webhook is an ASCII URL of at most {URL_CHARACTERS} characters", "webhook")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
        httpx.URL(url)
    except (ValueError, httpx.InvalidURL) as error:
        raise WebhookForbidden(f"the webhook is no URL: {error}", "webhook") from error
    if parts.scheme not in ("http", "https") or not host or parts.username or parts.password:
        raise WebhookForbidden("a webhook is http://HOST/... or https://HOST/..., without a password", "webhook")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return
    _require_public(address, private)


def secret_text(secret: bytes) -> str:
    """A secret as its owner is shown it."""
    return PREFIX + base64.b64encode(secret).decode()


def signature(secret: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """What `webhook-signature` is."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()


def deliver(connection: Connection, *, private: bool) -> bool:
    """Post the delivery that is due, if one is; False where none is. It is held while it is posted, by a row lock."""
    with connection.begin():
        row = connection.execute(
            text("""
                SELECT delivery.id, delivery.body, delivery.attempts, watch.webhook, watch.secret
                FROM delivery JOIN watch ON watch.id = delivery.watch_id
                WHERE delivered_at IS NULL AND failed_at IS NULL AND next_at <= now()
                ORDER BY next_at LIMIT 1 FOR UPDATE OF delivery SKIP LOCKED
            """)
        ).one_or_none()
        if row is None:
            return False
        problem = post(row.webhook, bytes(row.secret), f"msg_{row.id}", bytes(row.body), private=private)
        if problem is None:
            change = "delivered_at = now()"
        elif row.attempts < len(WAITS_S):
            change = "next_at = now() + make_interval(secs => :wait)"
        else:
            change = "failed_at = now()"
        if problem is not None:
            log.warning("webhook of delivery %d, attempt %d: %s", row.id, row.attempts + 1, problem)
        connection.execute(
            text(f"UPDATE delivery SET attempts = attempts + 1, problem = :problem, {change} WHERE id = :id"),  # noqa: S608
            {"problem": problem, "id": row.id, "wait": WAITS_S[min(row.attempts, len(WAITS_S) - 1)]},
        )
    return True


def post(url: str, secret: bytes, message_id: str, body: bytes, *, private: bool) -> str | None:
    """Post a message once; None where it was taken, else what was wrong. Redirects are not followed."""
    now = int(time.time())
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "sayagain",
        "webhook-id": message_id,
        "webhook-timestamp": str(now),
        "webhook-signature": signature(secret, message_id, now, body),
    }
    try:
        target, host = _resolved(url, private)
        with httpx.Client(timeout=TIMEOUT_S, trust_env=False) as client:
            request = client.build_request(
                "POST", target, content=body, headers=headers | {"Host": host}, extensions={"sni_hostname": _name(url)}
            )
            response = client.send(request, stream=True)  # what it says is not read
            response.close()
    except (httpx.HTTPError, WebhookForbidden, OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"[:500]
    return None if response.is_success else f"the answer was {response.status_code}"


def _name(url: str) -> str:
    return urlsplit(url).hostname or ""


def _resolved(url: str, private: bool) -> tuple[httpx.URL, str]:
    """The URL with an address in the host's place, and the host: nobody looks the name up again. Raises OSError too."""
    parsed = httpx.URL(url)
    port = parsed.port or {"http": 80, "https": 443}[parsed.scheme]
    found = socket.getaddrinfo(parsed.host, port, type=socket.SOCK_STREAM)
    addresses = [ipaddress.ip_address(entry[4][0]) for entry in found]
    for address in addresses:
        _require_public(address, private)
    return parsed.copy_with(host=str(addresses[0])), parsed.netloc.decode("ascii")


def _require_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address, private: bool) -> None:
    """Raises WebhookForbidden for an address of this machine or of a private network, however it is written."""
    inner: ipaddress.IPv4Address | ipaddress.IPv6Address = address
    if isinstance(address, ipaddress.IPv6Address):
        translated = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if address in NAT64 else None
        inner = address.ipv4_mapped or address.sixtofour or translated or address
    if not private and not all(one.is_global and not one.is_multicast for one in (address, inner)):
        raise WebhookForbidden(f"webhooks do not reach {address}, which is not a public address", "webhook")
