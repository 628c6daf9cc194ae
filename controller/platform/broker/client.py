"""A client for a broker: send events, watch them, change triggers."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Literal, Self

import httpx
import msgspec

from controller.platform.broker.ring import MOST_WAIT_S, SEQUENCE_HEADER, Undelivered
from runtime.head.access import TOKEN_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

DEFAULT_BROKER = "http://127.0.0.1:8090"
BROKER_VARIABLE = "MIDSTREAM_BROKER"
_TIMEOUT_S = 10.0
_LONG_POLL_S = 30.0


class BrokerError(RuntimeError):
    """The broker refused, or cannot be reached; `refused` tells the two apart, `status` is the HTTP status if any."""

    def __init__(self, message: str, *, refused: bool, status: int | None = None) -> None:
        super().__init__(message)
        self.refused = refused
        self.status = status


class Seen(msgspec.Struct, frozen=True):
    """An event in the broker's ring: as CloudEvents' JSON has it; `undelivered` when a trigger has given it up."""

    sequence: int
    at: float
    event: dict[str, Any]
    undelivered: Undelivered | None = None


class Seens(msgspec.Struct, frozen=True):
    """Events after a number; `next` is the number to go on after; `missed`: some were gone already."""

    events: list[Seen]
    next: int
    missed: bool


class BrokerClient:
    """Calls one broker; use as a context manager.

    Args:
        address: such as ``http://127.0.0.1:8090``.
        transport: for tests.

    """

    def __init__(self, address: str, transport: httpx.BaseTransport | None = None) -> None:
        token = os.environ.get(TOKEN_VARIABLE)
        self._address = address.rstrip("/")
        try:
            self._http = httpx.Client(
                base_url=self._address,
                headers={"Authorization": f"Bearer {token}"} if token else {},
                timeout=_TIMEOUT_S,
                trust_env=False,
                transport=transport,
            )
        except httpx.InvalidURL as error:
            raise BrokerError(f"{address!r} is no address such as http://127.0.0.1:8090", refused=False) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def send(self, headers: Mapping[str, str], body: bytes) -> int:
        """Send an event, written in either mode (`Event.to_http_binary`); returns its number in the ring."""
        response = self._call("POST", "/", headers=dict(headers), content=body)
        return int(response.headers.get(SEQUENCE_HEADER, 0))

    def events(
        self,
        after: int | Literal["latest"] = 0,
        wait_s: float = 0.0,
        subject: str | None = None,
        type: str | None = None,  # noqa: A002 - the attribute's name
    ) -> Seens:
        """Return recent events with higher numbers than `after`; wait up to `wait_s` (at most 60) for one."""
        given = {"after": after, "wait": wait_s, "subject": subject, "type": type}
        response = self._call(
            "GET",
            "/events",
            params={name: value for name, value in given.items() if value is not None},
            timeout=min(wait_s, MOST_WAIT_S) + _TIMEOUT_S,
        )
        return msgspec.json.decode(response.content, type=Seens)

    def watch(self, after: int, within_s: float | None = None, **wanted: str | None) -> Iterator[Seen]:
        """Yield events as they come, for ever or for so many seconds."""
        deadline = None if within_s is None else time.monotonic() + within_s
        while True:
            left = _LONG_POLL_S if deadline is None else min(deadline - time.monotonic(), _LONG_POLL_S)
            seens = self.events(after, max(left, 0.0), **wanted)
            yield from seens.events
            after = seens.next
            if deadline is not None and time.monotonic() >= deadline:
                return

    def triggers(self) -> list[dict[str, Any]]:
        """Return all triggers."""
        found: list[dict[str, Any]] = self._call("GET", "/triggers").json()["triggers"]
        return found

    def put_trigger(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Add a trigger, given as a Knative Trigger object, or replace the one of its name."""
        metadata = manifest.get("metadata")
        name = metadata.get("name") if isinstance(metadata, dict) else None
        if not isinstance(name, str) or not name:
            raise BrokerError("metadata.name is missing: a trigger needs a name", refused=True)
        answer: dict[str, Any] = self._call("PUT", f"/triggers/{name}", json=dict(manifest)).json()
        return answer

    def delete_trigger(self, name: str) -> int:
        """Remove a trigger; returns how many events were not delivered to it."""
        left: int = self._call("DELETE", f"/triggers/{name}").json()["undelivered"]
        return left

    def _call(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **arguments)
        except httpx.HTTPError as error:
            raise BrokerError(
                f"cannot reach the broker at {self._address} ({error or type(error).__name__}); is `midstream up` "
                "running? Name another broker with --broker",
                refused=False,
            ) from error
        if response.is_success:
            return response
        try:
            message = response.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            message = f"{self._address} answered HTTP {response.status_code}, but not as a broker"
        raise BrokerError(str(message), refused=400 <= response.status_code < 500, status=response.status_code)
