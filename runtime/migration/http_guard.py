"""A guard that is asked over HTTP: ``POST {url}/check``, with a bearer token where it wants one.

::

    {"workload": "smollm", "old_nodes": ["edge-1"], "new_nodes": ["edge-1", "edge-2"],
     "transfers": [{"source": "edge-1", "target": "edge-2"}], "state": ["kv"]}
    -> 200 {"holds": false, "reason": "node edge-2 is not one where ..."}

Any other answer is none: it allows nothing. Redirects are not followed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx

from runtime.head.access import is_loopback
from runtime.migration.guard import ANSWER_S, Ruling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.migration.guard import State

TOKEN_VARIABLE = "MIDSTREAM_GUARD_TOKEN"  # noqa: S105 - the variable's name, not its value
_MOST_REASON_CHARACTERS = 2000
_LAST_PORT = 65535


class GuardAddressError(ValueError):
    """The address of a guard cannot be used; the message says why."""


class HttpGuard:
    """Asks the service at `url`; see the module. Thread-safe.

    Args:
        url: such as ``http://127.0.0.1:7180``.
        token: what the service wants to see, if anything.
        transport: in place of httpx's own.

    Raises:
        GuardAddressError: `url` is none.

    """

    def __init__(self, url: str, token: str | None = None, transport: httpx.BaseTransport | None = None) -> None:
        self._url = _checked(url)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._transport = transport
        self._tls = httpx.create_ssl_context()  # once: it takes longer than a question

    def judge(
        self, pipeline: str, old: Sequence[str], new: Sequence[str], transfers: Sequence[tuple[str, str]], state: State
    ) -> Ruling:
        """Ask; see `runtime.migration.guard.Guard`."""
        body = {
            "workload": pipeline,
            "old_nodes": list(old),
            "new_nodes": list(new),
            "transfers": [{"source": source, "target": target} for source, target in transfers],
            "state": [state],
        }
        try:
            with self._client() as http:
                response = http.post(self._url, json=body, headers=self._headers)
        except httpx.HTTPError as error:
            return self._unknown(str(error) or type(error).__name__)
        try:
            content = response.json()
        except ValueError as error:
            content = f"no JSON: {error}"
        if response.status_code != httpx.codes.OK:
            told = content.get("error") if isinstance(content, dict) else content
            return self._unknown(f"HTTP {response.status_code}: {told}")
        if not isinstance(content, dict) or not isinstance(content.get("holds"), bool):
            return self._unknown(f'it did not say {{"holds": true}} or {{"holds": false}}, but {content!r:.100}')
        reason = content.get("reason")
        said = reason[:_MOST_REASON_CHARACTERS] if isinstance(reason, str) and reason else "no reason was given"
        return Ruling(allowed=content["holds"], reason="" if content["holds"] else said)

    def _client(self) -> httpx.Client:
        return httpx.Client(
            verify=self._tls,
            timeout=ANSWER_S,
            transport=self._transport,
            trust_env=not is_loopback(self._url.host),  # no proxy leads to this machine itself
        )

    def _unknown(self, what: str) -> Ruling:
        return Ruling(allowed=False, reason=f"{self._url}: {what}"[:_MOST_REASON_CHARACTERS], known=False)


def _checked(url: str) -> httpx.URL:
    shown = "the guard's address" if "@" in url else f"the guard's address {url!r}"  # there may be a password in it
    try:
        address = httpx.URL(url.rstrip("/") + "/check")
    except httpx.InvalidURL as error:
        raise GuardAddressError(f"{shown} is none such as http://127.0.0.1:7180: {error}") from None
    if address.userinfo:
        raise GuardAddressError(f"{shown} has a user name or a password in it; the token comes from {TOKEN_VARIABLE}")
    if address.scheme not in {"http", "https"} or not address.host or (address.port or 1) > _LAST_PORT:
        raise GuardAddressError(f"{shown} is none such as http://127.0.0.1:7180")
    return address
