"""A client for the control API of a Midstream server (`/midstream/v1`), as an experiment needs it.

Protocol: `POST reconfigurations {"layers": "8,12,10", "method": "pre_copy"}` (the method may be left out) answers 202
with the report of a running change, 409 while another one runs, 422 when the plan is refused.
`GET reconfigurations/{id}?wait=S` answers when the change has ended, or after S seconds. Errors look like OpenAI's. On
loopback no token is needed; elsewhere it is taken from `MIDSTREAM_CONTROL_TOKEN`.

Fields of a report that a server leaves out are None here, so that a missing figure stays missing in the result.
"""

import os
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import httpx
import msgspec

from loadgen.errors import ChangeFailedError, ChangeRefusedError, ControlError

_PREFIX = "/midstream/v1"
_LONG_POLL_S = 10.0
_ANSWER_TIMEOUT_S = 60.0  # a busy server may be slow to answer; a long poll's own wait comes on top

_T = TypeVar("_T")


class ChangeReport(msgspec.Struct, frozen=True, kw_only=True):
    """The server's report of one reconfiguration; times in ms or unix seconds, sizes in bytes."""

    id: str
    state: Literal["running", "committed", "aborted"]
    from_layers: str = msgspec.field(name="from")
    to_layers: str = msgspec.field(name="to")
    epoch: int | None = None
    reason: str | None = None
    started_at: float | None = None
    ended_at: float | None = None
    cutover_at: float | None = None
    total_ms: float | None = None
    steps_ms: dict[str, float] = {}
    bytes_moved: int | None = None
    rounds: int | None = None
    peak_extra_bytes: int | None = None
    requests_carried: int | None = None
    method: str | None = None
    stop_reason: str | None = None


class StageStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A stage that serves."""

    name: str
    pid: int
    node: str | None = None


class RecoveryReport(msgspec.Struct, frozen=True, kw_only=True):
    """The server's report of one recovery from lost stages."""

    id: str
    stages: tuple[str, ...]
    total_ms: float
    replayed_batches: int


class ServerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What an experiment needs of `GET status`."""

    model: str
    layers: str
    phase: str
    vllm_version: str | None = None
    epoch: int | None = None
    stages: tuple[StageStatus, ...] = ()
    recoveries: int = 0
    last_recovery: RecoveryReport | None = None
    spare_stages: dict[str, int] = {}
    """How many stages wait for a role on each node that is there."""


class ControlClient:
    """Talks to the control API at `base_url`; `transport` replaces the network in tests."""

    def __init__(self, base_url: str, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        token = os.environ.get("MIDSTREAM_CONTROL_TOKEN")
        self._http = httpx.AsyncClient(
            base_url=base_url,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=_ANSWER_TIMEOUT_S,
            trust_env=False,
            transport=transport,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def status(self) -> ServerStatus:
        """Return the server's status.

        Raises:
            ControlError: no answer, or one outside the contract.
        """
        return await self._ask("GET", "/status", ServerStatus)

    async def request_change(self, layers: str, method: str | None = None) -> ChangeReport:
        """Ask for the layout `layers` and return the report of the change that has begun.

        `method` is how KV gets to layers that change their node; None for the server's default.

        Raises:
            ChangeRefusedError: the server will not make this change, or not now.
            ControlError: no answer, or one outside the contract.
        """
        asked = {"layers": layers} if method is None else {"layers": layers, "method": method}
        return await self._ask("POST", "/reconfigurations", ChangeReport, json=asked)

    async def wait_for_end(self, change_id: str, deadline_s: float) -> ChangeReport:
        """Return the final report of a change, committed or aborted.

        Raises:
            ChangeFailedError: it still runs after `deadline_s` seconds.
            ControlError: no answer, or one outside the contract.
        """
        end = time.monotonic() + deadline_s
        while True:
            wait = max(0.0, min(_LONG_POLL_S, end - time.monotonic()))
            report = await self._ask(
                "GET",
                f"/reconfigurations/{change_id}",
                ChangeReport,
                params={"wait": f"{wait:g}"},
                timeout=_ANSWER_TIMEOUT_S + wait,
            )
            if report.state != "running":
                return report
            if time.monotonic() >= end:
                raise ChangeFailedError(f"{change_id} still runs after {deadline_s:g} s; see the server's log")

    async def change(self, layers: str, deadline_s: float) -> ChangeReport:
        """Make one change from request to end and return its report.

        Raises:
            ChangeRefusedError, ControlError: as for `request_change`.
            ChangeFailedError: it was aborted, or still runs after `deadline_s` seconds.
        """
        begun = await self.request_change(layers)
        report = await self.wait_for_end(begun.id, deadline_s)
        if report.state == "aborted":
            raise ChangeFailedError(f"{report.id} to {layers} was aborted: {report.reason}")
        return report

    async def change_capacity(self, limits: Mapping[str, int | bool]) -> None:
        """Ask for other limits of what the pipeline holds at once; they change as soon as no batch is in flight.

        Raises:
            ChangeRefusedError: the server will not make this change, or not now.
            ControlError: no answer, or one outside the contract.
        """
        await self._ask("POST", "/capacity", dict[str, Any], json=dict(limits))

    async def capacity(self) -> dict[str, Any]:
        """Return the limits now and at most, as the server gives them; raises ControlError."""
        return await self._ask("GET", "/capacity", dict[str, Any])

    async def story(self) -> list[dict[str, Any]]:
        """Return the newest entries of the server's journal, as they are; raises ControlError."""
        told = await self._ask("GET", "/story", dict[str, list[dict[str, Any]]])
        return told["events"]

    async def _ask(self, method: str, path: str, answer: type[_T], **kwargs: Any) -> _T:
        try:
            response = await self._http.request(method, _PREFIX + path, **kwargs)
        except httpx.TransportError as error:
            raise ControlError(f"{method} {_PREFIX}{path}: no answer: {error!r}") from error
        if response.is_error:
            refusals = (httpx.codes.CONFLICT, httpx.codes.UNPROCESSABLE_ENTITY)
            kind = ChangeRefusedError if response.status_code in refusals else ControlError
            raise kind(f"{method} {_PREFIX}{path}: HTTP {response.status_code}: {response.text[:500]}")
        try:
            return msgspec.json.decode(response.content, type=answer)
        except msgspec.DecodeError as error:
            raise ControlError(f"{method} {_PREFIX}{path}: answer outside the contract: {error}") from error
