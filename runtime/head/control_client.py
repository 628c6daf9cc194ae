"""A client for the control API of a running server."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Self

import httpx

from runtime.head.access import TOKEN_VARIABLE, is_loopback

if TYPE_CHECKING:
    from types import TracebackType

_KEY_HEADER = "Idempotency-Key"
_LONG_POLL_S = 30.0
_POLL_S = 0.05
_TIMEOUT_S = 10.0


class ControlError(RuntimeError):
    """The server refused, or cannot be reached; `refused` tells the two apart.

    `kind` is the refusal's type, such as ``busy`` or ``invalid``, when the control API gave one.
    """

    def __init__(self, message: str, *, refused: bool, kind: str | None = None) -> None:
        super().__init__(message)
        self.refused = refused
        self.kind = kind


class ControlClient:
    """Calls one server; use as a context manager.

    Args:
        endpoint: the server's address, such as ``http://127.0.0.1:8000`` (a trailing ``/v1`` is fine).
        transport: in place of httpx's own.
        token: of the server, if it is not the one in the environment.

    """

    def __init__(self, endpoint: str, transport: httpx.BaseTransport | None = None, token: str | None = None) -> None:
        token = os.environ.get(TOKEN_VARIABLE) if token is None else token
        self._endpoint = endpoint.rstrip("/").removesuffix("/v1")
        try:
            self._http = httpx.Client(
                base_url=f"{self._endpoint}/midstream/v1",
                headers={"Authorization": f"Bearer {token}"} if token else {},
                timeout=_TIMEOUT_S,
                transport=transport,
                trust_env=not is_loopback(httpx.URL(self._endpoint).host),  # no proxy leads to this machine itself
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

    def reconfigure(
        self,
        layers: str | None = None,
        method: str = "pre_copy",
        fallback: str = "abort",
        *,
        precision: str | None = None,
        key: str | None = None,
        generation: int | None = None,
        traceparent: str | None = None,
    ) -> dict[str, Any]:
        """Start a change and return its first report.

        Args:
            layers: the layout wanted, such as ``8,12,10``; None to keep it.
            method: how KV gets to layers that change their node.
            fallback: what to do when pre-copy does not converge.
            precision: of the weights, such as ``bfloat16``; None to keep it.
            key: asked twice with the same key, the server changes once and reports the same change twice.
            generation: of the object that wants it; the server refuses a lower one than it has accepted before.
            traceparent: the trace that it is part of.

        """
        body = {
            "layers": layers,
            "precision": precision,
            "method": method,
            "fallback": fallback,
            "generation": generation,
        }
        return self._call(
            "POST",
            "/reconfigurations",
            json={name: value for name, value in body.items() if value is not None},
            headers={
                name: value for name, value in ((_KEY_HEADER, key), ("traceparent", traceparent)) if value is not None
            },
        )

    def attach_stage(
        self, stage: int, node: str | None, within_s: float, *, holder: str | None = None, key: str | None = None
    ) -> dict[str, Any]:
        """Say that the function of a stage has come (to a node): what its release moved away comes back.

        `holder` names the function's instance; `key` is as in `reconfigure`.
        """
        return self._move("attach", stage, within_s, key, node=node, holder=holder)

    def release_stage(
        self, stage: int, within_s: float, *, holder: str | None = None, key: str | None = None
    ) -> dict[str, Any]:
        """Move a stage's layers to the stages beside it; returns when that has ended.

        Of two instances of its function, only the one that came last can do it. `key` is as in `reconfigure`.
        """
        return self._move("release", stage, within_s, key, holder=holder)

    def _move(self, what: str, stage: int, within_s: float, key: str | None, **body: str | None) -> dict[str, Any]:
        return self._call(
            "POST",
            f"/stages/{stage}/{what}",
            json={"within_s": within_s, **{name: value for name, value in body.items() if value is not None}},
            headers={_KEY_HEADER: key} if key else {},
            timeout=within_s + _TIMEOUT_S,
        )

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
        kind = refusal.get("type") if isinstance(refusal, dict) else None
        raise ControlError(str(message), refused=400 <= response.status_code < 500, kind=kind)
