"""The guard that running pipelines ask: over the current inventory file and the active intents.

| request | answer |
|---|---|
| `POST /check` | whether a pipeline may be where it wants to be; see `intents.proof.guard_service` |
| `GET /intents` | the active intents |
| `GET /healthz` | 200 while inventory and intents can be read, else 503 with the reason |

Files are read again when they have changed. What cannot be read allows nothing: a question is then answered with 503.
Beyond loopback everybody needs the token; on loopback too, if there is one.

How a pipeline is judged: `intents.pipeline_guard`.
"""

from __future__ import annotations

import ipaddress
import json
import os
from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 - typer reads it
from typing import TYPE_CHECKING, Annotated, Any

import typer
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from intents.access import is_loopback, presents
from intents.errors import EnforcementError, IntentsError
from intents.model.inventory import read_inventory
from intents.pipeline_guard import PipelineGuard
from intents.proof.guard_service import application
from intents.store import IntentStore, default_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from starlette.requests import Request

    from intents.model.intent import PrivacyIntent

TOKEN_VARIABLE = "MIDSTREAM_GUARD_TOKEN"  # noqa: S105 - the variable's name, not its value
DEFAULT_LISTEN = "127.0.0.1:7180"
_FAILED = 1


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """What was read, and of which files."""

    files: tuple[object, ...]
    intents: tuple[PrivacyIntent, ...]
    guard: PipelineGuard


class Current:
    """The guard over an inventory file and a folder of active intents, as they are now.

    Args:
        inventory: The file.
        state: The folder.
    """

    def __init__(self, inventory: Path, state: Path) -> None:
        self._inventory, self._state = inventory, state
        self._store = IntentStore(state)
        self._last: _Snapshot | None = None

    def guard(self) -> PipelineGuard:
        """Return the guard of what the files hold now.

        Raises:
            IntentsError: one of them cannot be read.
        """
        return self._read().guard

    def intents(self) -> tuple[PrivacyIntent, ...]:
        """Return the active intents; raises as `guard`."""
        return self._read().intents

    def _read(self) -> _Snapshot:
        files = (_signature(self._inventory), *map(_signature, sorted(self._state.glob("*.yaml"))))
        if self._last is None or self._last.files != files:
            self._last = None
            inventory, intents = read_inventory(self._inventory), self._store.active()
            self._last = _Snapshot(files, intents, PipelineGuard(inventory, intents))
        return self._last


def _signature(path: Path) -> object:
    try:
        found = os.stat(path)
    except OSError:  # reading it says what is wrong
        return path, None
    return path, found.st_mtime_ns, found.st_size, found.st_ino


def flows_of(path: Path | None) -> Callable[[], Sequence[dict[str, Any]]]:
    """Return what reads the flow rules that are installed from a file in ONOS' form; without one there are none."""

    def read() -> Sequence[dict[str, Any]]:
        if path is None:
            return ()
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise EnforcementError(f"{path}: cannot be read as JSON: {error}") from error
        rules = content.get("flows") if isinstance(content, dict) else content
        if not isinstance(rules, list):
            raise EnforcementError(f'{path}: holds no list of flow rules; expected {{"flows": [...]}}')
        return rules

    return read


def guard_application(
    current: Current, installed: Callable[[], Sequence[dict[str, Any]]], host: str, token: str | None
) -> Starlette:
    """Return the service.

    Args:
        current: Inventory and intents.
        installed: Returns the flow rules as installed.
        host: Address that it will be served at.
        token: What callers must present; may be None on loopback only.

    Raises:
        IntentsError: the address is not loopback, and there is no token.
    """
    checking = application(current.guard, installed, host, token)

    async def intents(request: Request) -> JSONResponse:
        refusal = _refusal(request, token)
        if refusal is not None:
            return JSONResponse({"error": refusal}, 401 if token else 403)
        try:
            active = current.intents()
        except IntentsError as error:
            return JSONResponse({"error": str(error)}, 503)
        return JSONResponse({"intents": [each.model_dump(mode="json", exclude_defaults=False) for each in active]})

    async def healthz(_: Request) -> JSONResponse:
        try:
            current.guard()
        except IntentsError as error:
            return JSONResponse({"error": str(error)}, 503)
        return JSONResponse({"status": "ready"})

    routes = [Route("/intents", intents, methods=["GET"]), Route("/healthz", healthz, methods=["GET"])]
    return Starlette(routes=[*checking.routes, *routes])


def _refusal(request: Request, token: str | None) -> str | None:
    """Return why somebody may not see the intents: they tell where sensitive data lies."""
    if token is not None:
        known = presents(request.headers.get("authorization", ""), token)
        return None if known else "a bearer token is required"
    if "origin" in request.headers or not is_loopback(request.url.hostname):
        return "web pages are not answered"  # nor what a rebound name leads here
    return None


def guard(
    inventory: Annotated[
        Path, typer.Option("--inventory", "-i", help="Snapshot of nodes, workloads, switches, links; read again.")
    ],
    listen: Annotated[str, typer.Option(help="Address to listen on, host:port.")] = DEFAULT_LISTEN,
    state: Annotated[
        Path | None, typer.Option(help="Folder of the active intents; default: in the user's state.")
    ] = None,
    flows: Annotated[
        Path | None, typer.Option(help="Flow rules as installed, in ONOS' form, for rules about ways; read again.")
    ] = None,
) -> None:
    """Answer running pipelines whether the active intents allow where they want to be.

    Beyond loopback it needs a token in MIDSTREAM_GUARD_TOKEN, which callers present. Start pipelines with
    `midstream serve --guard http://HOST:PORT`.
    """
    import uvicorn

    try:
        host, port = _address(listen)
        current = Current(inventory, state or default_folder())
        current.guard()  # say now what is wrong with the files
        service = guard_application(current, flows_of(flows), host, os.environ.get(TOKEN_VARIABLE) or None)
    except IntentsError as error:
        typer.echo(f"midstream: {error}", err=True)
        raise typer.Exit(_FAILED) from error
    typer.echo(f"guarding {len(current.intents())} intents at http://{listen}")
    uvicorn.run(service, host=host, port=port, log_level="warning")


def _address(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    host = "127.0.0.1" if host == "localhost" else host.strip("[]")
    try:
        ipaddress.ip_address(host)
        number = int(port)
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 16:
        raise IntentsError(f"--listen {listen}: expected an IP address and a port, such as {DEFAULT_LISTEN}")
    return host, number
