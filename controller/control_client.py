"""A client for the control API of a running server."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Self

import httpx

if TYPE_CHECKING:
    from types import TracebackType

_TOKEN_VARIABLE = "MIDSTREAM_CONTROL_TOKEN"  # noqa: S105 - the variable's name, not its value
_LONG_POLL_S = 30.0
_POLL_S = 0.05
_TIMEOUT_S = 10.0


class ControlError(RuntimeError):
    """The server refused, or cannot be reached; `refused` tells the two apart."""

    def __init__(self, message: str, *, refused: bool) -> None:
        super().__init__(message)
        self.refused = refused


class ControlClient:
    """Calls one server; use as a context manager.

    Args:
        endpoint: the server's address, such as ``http://127.0.0.1:8000`` (a trailing ``/v1`` is fine).
        transport: for tests.

    """

    def __init__(self, endpoint: str, transport: httpx.BaseTransport | None = None) -> None:
        token = os.environ.get(_TOKEN_VARIABLE)
        self._endpoint = endpoint.rstrip("/").removesuffix("/v1")
        try:
            self._http = httpx.Client(
                base_url=f"{self._endpoint}/midstream/v1",
                headers={"Authorization": f"Bearer {token}"} if token else {},
                timeout=_TIMEOUT_S,
                transport=transport,
            )
        except httpx.InvalidURL as error:
            raise ControlError(
                f"{endpoint!r} is no address such as http://127.0.0.1:8000: {error}", refused=False
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def status(self) -> dict[str, Any]:
        """Return what serves now."""
        return self._call("GET", "/status")

    def reconfigure(self, layers: str, method: str = "pre_copy", fallback: str = "abort") -> dict[str, Any]:
        """Start a change and return its first report."""
        return self._call("POST", "/reconfigurations", json={"layers": layers, "method": method, "fallback": fallback})

    def capacity(self) -> dict[str, Any]:
        """Return the limits now and at most."""
        return self._call("GET", "/capacity")

    def change_capacity(self, **limits: int | bool | None) -> dict[str, Any]:
        """Change limits and return what became of it, once it was carried out."""
        state = self._call("POST", "/capacity", json=limits)
        while state["waiting"]:
            time.sleep(_POLL_S)
            state = self.capacity()
        return state

    def wait(self, change: str) -> dict[str, Any]:
        """Return a change's report once it has ended."""
        while True:
            timeout = _LONG_POLL_S + _TIMEOUT_S
            report = self._call("GET", f"/reconfigurations/{change}", params={"wait": _LONG_POLL_S}, timeout=timeout)
            if report["ended_at"] is not None:
                return report

    def story(self, subject: str | None) -> list[dict[str, Any]]:
        """Return the journal's entries of a subject, or of everything."""
        events: list[dict[str, Any]] = self._call("GET", f"/story/{subject}" if subject else "/story")["events"]
        return events

    def trace(self) -> dict[str, Any]:
        """Return stage activity as a Chrome trace."""
        return self._call("GET", "/trace")

    def _call(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        try:
            response = self._http.request(method, path, **arguments)
        except httpx.HTTPError as error:
            raise ControlError(
                f"cannot reach {self._endpoint} ({error or type(error).__name__}); is `midstream serve` running there? "
                "Name another server with --endpoint",
                refused=False,
            ) from error
        try:
            content = response.json()
        except ValueError:
            content = None
        # Some other server may answer anything.
        answer: dict[str, Any] = content if isinstance(content, dict) else {}
        if response.is_success and answer:
            return answer
        refusal = answer.get("error")
        told = refusal.get("message") if isinstance(refusal, dict) else refusal
        message = told or answer.get("detail") or f"HTTP {response.status_code}"
        if response.status_code == 404 and "error" not in answer:
            message = f"{self._endpoint} answers, but has no control API: it was not started by `midstream serve`"
        raise ControlError(str(message), refused=400 <= response.status_code < 500)
