"""A head over real HTTP whose pipeline is made up.

The control API, its calls, the desk and the coordinator are the real ones; only the effects of changes are under the
test's control, see `FakeEffects`.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from argparse import Namespace
from contextlib import asynccontextmanager, contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI, Request

from runtime.engine.control import ControlCalls
from runtime.head.control_api import ControlPlugin
from runtime.migration.coordinator import Coordinator
from runtime.migration.journal import Journal
from tests.unit.runtime.migration.fake_effects import FakeEffects

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from starlette.datastructures import State

    from runtime.migration.guard import Permission

DEADLINE_S = 20.0
_POLL_S = 0.02


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"it did not come to it that {what}"
        time.sleep(_POLL_S)


class Engine:
    """Stands in for vLLM's client of the engine's process: calls are carried out one after the other."""

    def __init__(self, calls: ControlCalls) -> None:
        self._calls, self._one = calls, asyncio.Lock()

    async def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[Any]:
        async with self._one:
            return self._calls.call(method, args)


class Head:
    """One start of a head: changes, keys and stages begin anew."""

    def __init__(self, port: int, layers: str = "2,2", permission: Permission | None = None) -> None:
        self.port = port
        self.effects = FakeEffects(layers)
        self.journal = journal = Journal()
        self.coordinator = Coordinator(self.effects, journal, permission=permission)
        self._pipeline: Any = SimpleNamespace(
            coordinator=self.coordinator,
            journal=journal,
            layout=self.effects.layout,
            status=lambda: {"last_change": self.coordinator.last.report() if self.coordinator.last else None},
            nodes=SimpleNamespace(lost_names=frozenset),
            sleep=SimpleNamespace(awake=True),
        )
        self.asked: list[str] = []
        self._server = uvicorn.Server(
            uvicorn.Config(self._app(), host="127.0.0.1", port=port, log_level="error", timeout_graceful_shutdown=1)
        )
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    @property
    def layers(self) -> str:
        return str(self.effects.serving)

    @property
    def changes(self) -> int:
        return self.effects.count("prepare")

    @contextmanager
    def running(self) -> Iterator[Head]:
        self._thread.start()
        until(lambda: self._server.started, "the head listens")
        try:
            yield self
        finally:
            self.effects.open_all()
            self._server.should_exit = True
            self._thread.join(DEADLINE_S)
            self.coordinator.close()

    def _app(self) -> FastAPI:
        plugin = ControlPlugin()

        @asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[None]:
            engine: Any = Engine(ControlCalls(self._pipeline, "m", "0"))
            state: State = app.state
            await plugin.init_state(engine, state, Namespace(host="127.0.0.1", uds=None))
            yield

        app = FastAPI(lifespan=lifespan)
        plugin.attach_router(app)

        @app.middleware("http")
        async def _remember(request: Request, call_next: Any) -> Any:
            self.asked.append(f"{request.method} {request.url.path.removeprefix('/midstream/v1')}")
            return await call_next(request)

        return app
