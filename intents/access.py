"""Who may ask the services here, and where nobody else listens."""

from __future__ import annotations

import hmac
import ipaddress


def is_loopback(host: str | None) -> bool:
    """Whether an address or name without port is this machine's own, which no other machine reaches."""
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def presents(authorization: str, token: str) -> bool:
    """Whether an ``Authorization`` header presents the bearer token; takes as long for a wrong one as for the right."""
    scheme, _, given = authorization.partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode())
