"""The broker as a process of its own: a port on loopback, triggers from files, and an orderly end.

SIGTERM or SIGINT: nothing is accepted any more, what was accepted is delivered for a bounded time, and what was not
delivered by then is logged. A second signal ends the waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx
import uvicorn

from controller.platform.broker.broker import Broker, Limits
from controller.platform.broker.ingress import make_app
from controller.platform.broker.sending import HttpSender
from controller.platform.broker.trigger import read_triggers
from runtime.head.access import TOKEN_VARIABLE, AccessPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping
    from pathlib import Path

HOST = "127.0.0.1"
_BACKLOG = 128
_OPEN_REQUESTS_S = 5
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BrokerOptions:
    """What the process was asked for.

    Attributes:
        port: on loopback; 0: any that is free.
        triggers: YAML files.
        services: addresses of Knative Services that run here, by name.
        drain_s: seconds for delivering what is left at the end.

    """

    port: int
    triggers: tuple[Path, ...] = ()
    services: Mapping[str, str] | None = None
    drain_s: float = 10.0


async def run_broker(options: BrokerOptions, ready: Callable[[str], None]) -> int:
    """Serve until SIGTERM or SIGINT; returns how many events were left undelivered.

    Args:
        options: what was asked for.
        ready: told the broker's address when it accepts events.

    Raises:
        TriggerError: a file with triggers is wrong.
        OSError: the port is taken.

    """
    services = options.services or {}
    triggers = [trigger for file in options.triggers for trigger in read_triggers(file, services)]
    limits = Limits()
    # Not by a proxy of the environment, and not where an answer redirects to: events go where triggers say.
    connections = httpx.Limits(max_connections=None, max_keepalive_connections=32)
    async with httpx.AsyncClient(timeout=None, limits=connections, trust_env=False) as http:  # noqa: S113 - the sender's
        broker = Broker(HttpSender(http, limits.event_bytes), limits)
        for trigger in triggers:
            broker.put_trigger(trigger)
        with socket.create_server((HOST, options.port), backlog=_BACKLOG) as listener:
            address = f"http://{HOST}:{listener.getsockname()[1]}"
            app = make_app(broker, services, AccessPolicy(True, os.environ.get(TOKEN_VARIABLE) or None))
            config = uvicorn.Config(
                app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=_OPEN_REQUESTS_S
            )
            server = _Server(config, broker, lambda: ready(address))
            await server.serve(sockets=[listener])
        return await _drain(broker, options.drain_s, server.asked_again)


async def _drain(broker: Broker, within_s: float, hurry: asyncio.Event) -> int:
    stopping = asyncio.create_task(broker.stop(within_s))
    hurrying = asyncio.create_task(hurry.wait())
    await asyncio.wait({stopping, hurrying}, return_when=asyncio.FIRST_COMPLETED)
    hurrying.cancel()
    if not stopping.done():
        stopping.cancel()
        await asyncio.wait({stopping})
        return sum(map(len, (await broker.stop(0.0)).values()))
    return sum(map(len, stopping.result().values()))


class _Server(uvicorn.Server):
    """Uvicorn, but a signal first closes the broker, and does not end the process before what is left is delivered."""

    def __init__(self, config: uvicorn.Config, broker: Broker, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self.asked_again = asyncio.Event()
        self._broker = broker
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._broker.close()  # or uvicorn waited for watchers
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Take the signals; other than uvicorn's own, this leaves them taken, for the time after serving."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)
        yield

    def _on_signal(self) -> None:
        if self.should_exit:
            self.asked_again.set()
        self.should_exit = True
