"""Who may use the control API.

On loopback everybody on the machine may, unless a token is set, but no web page: a browser sends pages' requests with
an ``Origin`` and, after DNS rebinding, with a foreign ``Host``, and both are refused. Bound anywhere else, only the
holder of the token may, and without a token nobody.
"""

from __future__ import annotations

import hmac
import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

TOKEN_VARIABLE = "MIDSTREAM_CONTROL_TOKEN"  # noqa: S105 - the variable's name, not its value


@dataclass(frozen=True, slots=True)
class AccessPolicy:
    """The rule for one server: where it is bound, and its token if it has one."""

    on_loopback: bool
    token: str | None

    def refusal(self, headers: Mapping[str, str]) -> tuple[int, str] | None:
        """Return (HTTP status, message) when a request with these (lower-case) headers is refused."""
        if self.token:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() == "bearer" and hmac.compare_digest(given.encode(), self.token.encode()):
                return None
            return 401, f"the control API needs 'Authorization: Bearer <the value of {TOKEN_VARIABLE}>'"
        if not self.on_loopback:
            return 403, (
                "the control API is closed: this server listens beyond loopback and has no token; "
                f"set {TOKEN_VARIABLE} and start it again"
            )
        host = headers.get("host", "localhost")
        if "origin" in headers or not is_loopback(_without_port(host)):
            return 403, "the control API does not answer web pages; use midstream, curl or a program on this machine"
        return None


def is_loopback(host: str | None) -> bool:
    """Whether a host to bind to or to call is this machine only."""
    if host in {None, ""}:
        return False  # all interfaces
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(str(host).strip("[]")).is_loopback
    except ValueError:
        return False


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.rpartition(":")[0] if host.count(":") == 1 else host
