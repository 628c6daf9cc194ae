"""What a head says, and how it is asked: its control API, with the token of its pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx
import msgspec

from runtime.head.control_client import ControlClient, ControlError

if TYPE_CHECKING:
    from controller.platform.operator.plan import Request


class StageReport(msgspec.Struct, frozen=True):
    """A stage that serves."""

    index: int
    first_layer: int
    last_layer: int
    node: str


class ChangeReport(msgspec.Struct, frozen=True):
    """What became of a change; `request` is the key that it was asked for with."""

    id: str
    boot: str
    state: str
    request: str | None = None
    reason: str | None = None
    total_ms: float = 0.0
    bytes_moved: int = 0
    pause_ms: float | None = None

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self.state != "running"


class HeadReport(msgspec.Struct, frozen=True):
    """What serves now; `change` is the one under way. A head that was started again has another `boot`."""

    boot: str
    epoch: int
    phase: str
    layers: str
    total_layers: int
    stages: tuple[StageReport, ...] = ()
    change: str | None = None
    last_change: ChangeReport | None = None


@dataclass(frozen=True, slots=True)
class HeadAway:
    """The head says nothing that can be used; `reason` is a word for programs."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """The head's answer to a request that started no change; `kind` as in the control API."""

    kind: str | None
    message: str


class HeadClient:
    """One head, at the address of its pod."""

    def __init__(self, endpoint: str, token: str) -> None:
        self._endpoint = endpoint
        self._token = token

    def status(self) -> HeadReport | HeadAway:
        """Return what serves now."""
        try:
            with self._client() as client:
                return msgspec.convert(client.status(), HeadReport)
        except ControlError as error:
            return HeadAway("Refused" if error.refused else "Unreachable", str(error))
        except msgspec.ValidationError as error:
            return HeadAway("Unknown", f"{self._endpoint} answers something else than a head: {error}")

    def inquire(self, request: Request) -> ChangeReport | Refusal | HeadAway:
        """Return what became of a request. If the head does not know its key yet, this is the request."""
        try:
            with self._client() as client:
                report = client.reconfigure(
                    request.layers,
                    request.method,
                    request.fallback,
                    key=request.key,
                    generation=request.generation,
                )
                return msgspec.convert(report, ChangeReport)
        except ControlError as error:
            if error.refused:
                return Refusal(error.kind, str(error))
            return HeadAway("Unreachable", str(error))
        except msgspec.ValidationError as error:
            return HeadAway("Unknown", f"{self._endpoint} answers something else than a head: {error}")

    def _client(self) -> ControlClient:
        return ControlClient(self._endpoint, httpx.HTTPTransport(trust_env=False), self._token)
