"""Requests for another layout as CloudEvents, posted to a broker or to whoever else takes them.

In the binary mode of CloudEvents 1.0. An answer may take as long as the change; whoever waits no longer has still sent
the event, and what becomes of it is the head's to say.
"""

from __future__ import annotations

import ipaddress
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import httpx
from cloudevents.core.bindings.http import to_binary
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

from intents.errors import EnforcementError
from intents.moves import REQUESTED

if TYPE_CHECKING:
    from intents.moves import Move

_TIMEOUT_S = 10.0
_log = logging.getLogger(__name__)


class EventSink:
    """Posts events to one address.

    Args:
        url: Such as `http://127.0.0.1:8090`.
        token: For a broker on this machine; no other address gets it.
        transport: In place of httpx's own.

    Raises:
        EnforcementError: the address is none.
    """

    def __init__(self, url: str, token: str | None = None, transport: httpx.BaseTransport | None = None) -> None:
        try:
            address = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise EnforcementError(f"{url!r} is no address such as http://127.0.0.1:8090: {error}") from error
        if address.scheme not in {"http", "https"} or not address.host or address.userinfo:
            raise EnforcementError("the address for events must be such as http://127.0.0.1:8090, without a user")
        self._url, self._transport = address, transport
        near = _is_loopback(address.host)
        self._headers = {"authorization": f"Bearer {token}"} if token and near else {}
        self._trust_env = not near  # no proxy leads to this machine itself

    def publish(self, move: Move) -> None:
        """Post the request for a layout.

        Raises:
            EnforcementError: it was not taken.
        """
        message = to_binary(event_of(move), JSONFormat())
        headers = {**message.headers, **self._headers}
        try:
            with httpx.Client(timeout=_TIMEOUT_S, transport=self._transport, trust_env=self._trust_env) as http:
                response = http.post(self._url, content=message.body, headers=headers)
        except httpx.ReadTimeout:
            _log.info("%s has %s and has not answered yet", self._url, move.key)
            return
        except httpx.HTTPError as error:
            raise EnforcementError(f"{self._url}: {str(error) or type(error).__name__}") from error
        if not response.is_success:
            raise EnforcementError(f"{self._url}: HTTP {response.status_code}")


def event_of(move: Move) -> CloudEvent:
    """Return the event that asks for a layout."""
    attributes = {
        "specversion": "1.0",
        "id": move.id,
        "source": move.source,
        "type": REQUESTED,
        "subject": move.broken.pipeline,
        "time": datetime.now(UTC),
        "datacontenttype": "application/json",
        **move.extensions,
    }
    return CloudEvent(attributes, move.data)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
