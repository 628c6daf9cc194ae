"""What a supervisor hears from and says to the broker and the head, once they run."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Any, Protocol

import httpx

from runtime.head.access import TOKEN_VARIABLE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

_LONG_POLL_S = 30.0
_TIMEOUT_S = 10.0
_AGAIN_S = 0.5


class Link(Protocol):
    """What the supervisor needs."""

    def events(self) -> AsyncIterator[Mapping[str, Any]]:
        """Yield the events that the broker takes, in CloudEvents' JSON form, as long as it is asked."""

    async def wanted_layers(self) -> str | None:
        """Return the layout that was asked for last, stages that are away included; None when the head does not say."""

    async def put_trigger(self, manifest: Mapping[str, Any]) -> None:
        """Have events delivered to another function from now on."""

    async def delete_trigger(self, name: str) -> None:
        """Have no events delivered to a function any more."""


class HttpLink:
    """The real one. What cannot be reached is being started again: it then reads its triggers from the file."""

    def __init__(self, broker: str, head: str) -> None:
        self._broker, self._head = broker, head
        token = os.environ.get(TOKEN_VARIABLE)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    async def events(self) -> AsyncIterator[Mapping[str, Any]]:
        """Yield the events that the broker takes; after a new start of the broker from its first one on."""
        after = 0
        while True:
            parameters = {"after": after, "wait": _LONG_POLL_S}
            page = await self._call("GET", f"{self._broker}/events", params=parameters)
            if page is None:
                await asyncio.sleep(_AGAIN_S)
                continue
            for entry in page["events"]:
                if entry.get("undelivered") is None:
                    yield entry["event"]
            after = page["next"]

    async def wanted_layers(self) -> str | None:
        """Return the layout that was asked for last."""
        status = await self._call("GET", f"{self._head}/midstream/v1/status")
        return None if status is None else status.get("wanted")

    async def put_trigger(self, manifest: Mapping[str, Any]) -> None:
        """Have events delivered to another function."""
        await self._call("PUT", f"{self._broker}/triggers/{manifest['metadata']['name']}", json=dict(manifest))

    async def delete_trigger(self, name: str) -> None:
        """Have no events delivered to a function."""
        await self._call("DELETE", f"{self._broker}/triggers/{name}")

    async def _call(self, method: str, url: str, **arguments: Any) -> dict[str, Any] | None:
        async with httpx.AsyncClient(headers=self._headers, timeout=_LONG_POLL_S + _TIMEOUT_S, trust_env=False) as http:
            with contextlib.suppress(httpx.TransportError, ValueError):
                response = await http.request(method, url, **arguments)
                if response.is_success:
                    answer: dict[str, Any] = response.json()
                    return answer
        return None
