"""What a supervisor hears from and says to the broker and the head, once they run."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

import httpx
import msgspec

from controller.platform.broker.client import Seen, Seens
from controller.platform.local.head_status import read_report, read_status
from runtime.head.access import TOKEN_VARIABLE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from controller.platform.local.head_status import ChangeReport, HeadStatus

_LONG_POLL_S = 30.0
_TIMEOUT_S = 10.0
_AGAIN_S = 0.5


class Link(Protocol):
    """What the supervisor needs."""

    def events(self) -> AsyncIterator[Seen | None]:
        """Yield the events that the broker takes, as long as it is asked; None when some may have been missed."""

    async def status(self) -> HeadStatus | None:
        """Return what the head says now; None when it does not answer."""

    async def report(self, change: str) -> ChangeReport | None:
        """Return what the head says of a change; None when it does not know it, or does not answer."""

    async def put_trigger(self, manifest: Mapping[str, Any]) -> None:
        """Have events delivered to another function from now on."""

    async def delete_trigger(self, name: str) -> None:
        """Have no events delivered to a function any more."""


class HttpLink:
    """The real one. What cannot be reached is being started again: it then reads its triggers from the file."""

    def __init__(self, broker: str, head: str) -> None:
        self._broker, self._head = broker, f"{head}/midstream/v1"
        token = os.environ.get(TOKEN_VARIABLE)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    async def events(self) -> AsyncIterator[Seen | None]:
        """Yield the events that the broker takes; after a new start of the broker from its first one on."""
        after = 0
        while True:
            parameters = {"after": after, "wait": _LONG_POLL_S}
            page = await self._page(parameters)
            if page is None:
                await asyncio.sleep(_AGAIN_S)
                yield None
                continue
            if page.missed:
                yield None
            for seen in page.events:
                yield seen
            after = page.next

    async def status(self) -> HeadStatus | None:
        """Return what the head says now."""
        return read_status(await self._call("GET", f"{self._head}/status"))

    async def report(self, change: str) -> ChangeReport | None:
        """Return what the head says of a change."""
        return read_report(await self._call("GET", f"{self._head}/reconfigurations/{quote(change, safe='')}"))

    async def put_trigger(self, manifest: Mapping[str, Any]) -> None:
        """Have events delivered to another function."""
        await self._call("PUT", f"{self._broker}/triggers/{manifest['metadata']['name']}", json=dict(manifest))

    async def delete_trigger(self, name: str) -> None:
        """Have no events delivered to a function."""
        await self._call("DELETE", f"{self._broker}/triggers/{name}")

    async def _page(self, parameters: Mapping[str, Any]) -> Seens | None:
        url, timeout_s = f"{self._broker}/events", _LONG_POLL_S + _TIMEOUT_S
        page = await self._call("GET", url, timeout_s, params=dict(parameters))
        try:
            return msgspec.convert(page, Seens)
        except msgspec.ValidationError:
            return None

    async def _call(self, method: str, url: str, timeout_s: float = _TIMEOUT_S, **arguments: Any) -> object:
        """Return the answer, decoded; None without one."""
        async with httpx.AsyncClient(headers=self._headers, timeout=timeout_s, trust_env=False) as http:
            with contextlib.suppress(httpx.TransportError, ValueError):
                response = await http.request(method, url, **arguments)
                if response.is_success:
                    answer: object = response.json()
                    return answer
        return None
