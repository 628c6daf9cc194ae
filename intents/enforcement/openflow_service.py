"""The OpenFlow controller as a process of its own, and the client that tells it what to hold switches to.

    python -m intents.enforcement.openflow_service --socket /run/midstream/openflow.sock

Switches connect over TCP (`--host`, `--port`; 127.0.0.1:6653). Anywhere but on loopback TLS is required, with the
switches' certificates signed by `--tls-ca`: whoever may speak as a switch could lie about what is installed. The
controller is told over a Unix socket, which only its own user may open:

    PUT /flows      {"flows": [...]}: hold all switches to these    GET /switches   ports that are up, by device
    GET /flows      what is really installed                        GET /events     ?after=NUMBER&wait_s=SECONDS
    DELETE /flows   take all of them away

The process prints one line of JSON with the port when it is ready, and ends with SIGTERM; the rules stay.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import ssl
import sys
from typing import TYPE_CHECKING, Any, Self

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from intents.access import is_loopback
from intents.errors import EnforcementError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from types import TracebackType

    from starlette.requests import Request

    from intents.enforcement.openflow import Controller

_OPENFLOW_PORT = 6653
_TIMEOUT_S = 60.0


class OpenFlowStore:
    """A `FlowStore` that is a controller process on this machine.

    Args:
        socket_path: Where its Unix socket is.
    """

    def __init__(self, socket_path: str) -> None:
        self._socket_path = socket_path
        self._http = httpx.Client(
            transport=httpx.HTTPTransport(uds=socket_path), base_url="http://openflow", timeout=_TIMEOUT_S
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the controller goes on."""
        self._http.close()

    def apply(self, flows: Sequence[dict[str, Any]]) -> None:
        """Hold all switches to these flow rules."""
        self._ask("PUT", "/flows", json={"flows": list(flows)})

    def read(self) -> list[dict[str, Any]]:
        """Return every rule that is really installed."""
        return list(self._ask("GET", "/flows")["flows"])

    def delete(self) -> None:
        """Take all rules of the controller away."""
        self._ask("DELETE", "/flows")

    def switches(self) -> dict[str, dict[int, bool]]:
        """Return whether each port is up, by device, of the connected switches."""
        found = self._ask("GET", "/switches")["switches"]
        return {device: {int(port): up for port, up in ports.items()} for device, ports in found.items()}

    def events(self, after: int = 0, wait_s: float = 0.0) -> list[dict[str, Any]]:
        """Return what happened after the event of that number; wait that long if nothing did."""
        return list(self._ask("GET", "/events", params={"after": after, "wait_s": wait_s})["events"])

    def _ask(self, method: str, path: str, **what: Any) -> dict[str, Any]:
        if not os.path.exists(self._socket_path):
            raise EnforcementError(f"no OpenFlow controller listens at {self._socket_path}: start it first")
        try:
            answer = self._http.request(method, path, **what)
            body: dict[str, Any] = answer.json()
        except (httpx.HTTPError, ValueError) as error:
            raise EnforcementError(f"the OpenFlow controller did not answer {method} {path}: {error!r}") from error
        if answer.is_error:
            raise EnforcementError(f"the OpenFlow controller: {body.get('error', answer.status_code)}")
        return body


def application(controller: Controller) -> Starlette:
    """Return the HTTP form of a controller."""

    def route(path: str, method: str, do: Callable[[Request], Awaitable[dict[str, Any]]]) -> Route:
        async def endpoint(request: Request) -> JSONResponse:
            try:
                return JSONResponse(await do(request))
            except EnforcementError as error:
                return JSONResponse({"error": str(error)}, status_code=502)
            except (ValueError, KeyError, TypeError) as error:
                return JSONResponse({"error": f"the request cannot be read: {error!r}"}, status_code=400)

        return Route(path, endpoint, methods=[method])

    async def put(request: Request) -> dict[str, Any]:
        await controller.apply((await request.json())["flows"])
        return {}

    async def get(_: Request) -> dict[str, Any]:
        return {"flows": await controller.read()}

    async def delete(_: Request) -> dict[str, Any]:
        await controller.delete()
        return {}

    async def switches(_: Request) -> dict[str, Any]:
        return {"switches": controller.switches()}

    async def events(request: Request) -> dict[str, Any]:
        after, wait_s = int(request.query_params["after"]), float(request.query_params["wait_s"])
        return {"events": await controller.events(after, min(max(wait_s, 0.0), _TIMEOUT_S / 2))}

    return Starlette(
        routes=[
            route("/flows", "PUT", put),
            route("/flows", "GET", get),
            route("/flows", "DELETE", delete),
            route("/switches", "GET", switches),
            route("/events", "GET", events),
        ]
    )


def _private_socket(path: str) -> socket.socket:
    """Listen on a Unix socket that only this user may open: from now on, whoever connects is answered in time."""
    listening = socket.socket(socket.AF_UNIX)
    if os.path.exists(path):
        os.unlink(path)
    before = os.umask(0o177)
    try:
        listening.bind(path)
    finally:
        os.umask(before)
    listening.listen()
    return listening


def _tls(options: argparse.Namespace) -> ssl.SSLContext | None:
    given = [options.tls_cert, options.tls_key, options.tls_ca]
    if all(given):
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=options.tls_ca)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(options.tls_cert, options.tls_key)
        return context
    if any(given):
        raise EnforcementError("--tls-cert, --tls-key and --tls-ca go together: give all three")
    if not is_loopback(options.host):
        raise EnforcementError(f"--host {options.host} is not loopback: give --tls-cert, --tls-key and --tls-ca")
    return None


async def _run(options: argparse.Namespace) -> None:
    from intents.enforcement.openflow import Controller  # os_ken takes long to import, and the client needs none of it

    controller = Controller()
    context = _tls(options)
    server = await controller.listen(options.host, options.port, context)
    port = server.sockets[0].getsockname()[1]
    config = uvicorn.Config(application(controller), log_config=None, lifespan="off", timeout_graceful_shutdown=1)
    with _private_socket(options.socket) as listening:
        print(json.dumps({"ready": True, "port": port}), flush=True)  # noqa: T201 - whoever started it waits for it
        await uvicorn.Server(config).serve(sockets=[listening])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the controller; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m intents.enforcement.openflow_service", description=__doc__)
    parser.add_argument("--socket", required=True, help="path of the Unix socket that it is told by")
    parser.add_argument("--host", default="127.0.0.1", help="address that switches connect to")
    parser.add_argument("--port", type=int, default=_OPENFLOW_PORT, help="its port; 0: any that is free")
    parser.add_argument("--tls-cert", help="certificate of the controller (PEM)")
    parser.add_argument("--tls-key", help="its key")
    parser.add_argument("--tls-ca", help="authority that signs the switches' certificates")
    options = parser.parse_args(arguments)
    try:
        asyncio.run(_run(options))
    except (EnforcementError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
