"""The mock's side of Midstream's control API: one change at a time, lost stages, capacity and story.

Nothing is moved: a change takes the time it is told to, lets all streams stand still for its cutover, and reports
made-up figures.
"""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

import msgspec

from loadgen.mock.behaviour import Behaviour
from loadgen.mock.engine import MockEngine
from loadgen.mock.http import Handler, Request, Response, error

PREFIX = "/midstream/v1"
_MOST = {"kv_blocks": 1000, "max_requests": 100, "max_batch_tokens": 2048}
_PID = 10_000_000  # beyond the largest id Linux gives out: nobody can be hit by mistake


class ControlApi:
    """The state of the pipeline that the mock pretends to be."""

    def __init__(self, behaviour: Behaviour, engine: MockEngine, model: str, layers: str) -> None:
        self.layers = layers
        self.epoch = 0
        self._behaviour = behaviour
        self._engine = engine
        self._model = model
        self._changes: dict[str, dict[str, Any]] = {}
        self._ended: dict[str, asyncio.Event] = {}
        self._recoveries: list[dict[str, Any]] = []
        self._capacity = dict(_MOST)
        self._nodes = [node for part in layers.split(",") if (node := part.partition("@")[2])]
        self._stages = [f"stage-{number}" for number in range(1, len(layers.split(",")) + 1)]
        self._tasks: set[asyncio.Task[None]] = set()

    def handlers(self) -> dict[tuple[str, str], Handler]:
        """Return the routes with a fixed path."""
        return {
            ("GET", f"{PREFIX}/status"): self._status,
            ("POST", f"{PREFIX}/reconfigurations"): self._reconfigure,
            ("GET", f"{PREFIX}/capacity"): self._ask_capacity,
            ("POST", f"{PREFIX}/capacity"): self._set_capacity,
            ("GET", f"{PREFIX}/story"): self._story,
        }

    def prefixes(self) -> dict[tuple[str, str], Handler]:
        """Return the routes whose path ends in a name."""
        return {("GET", f"{PREFIX}/reconfigurations/"): self._report}

    def lose(self, pid: int) -> None:
        """Lose a stage, as if its process had been killed: streams stand still until another has taken its place."""
        rank = pid - _PID
        lost = self._stages[rank]
        self._stages[rank] += "-replaced"
        self._engine.hold()

        async def recover() -> None:
            await asyncio.sleep(self._behaviour.change_stall_ms / 1e3)
            self._recoveries.append(
                {
                    "id": f"recovery-{len(self._recoveries) + 1}",
                    "stages": [lost],
                    "total_ms": self._behaviour.change_stall_ms,
                    "replayed_batches": 1,
                }
            )
            self._engine.release()

        if self._behaviour.change_outcome == "commit":
            self._start(recover())

    def close(self) -> None:
        """End what runs."""
        for task in self._tasks:
            task.cancel()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _status(self, _: Request) -> Response:
        running = next((c["id"] for c in self._changes.values() if c["state"] == "running"), None)
        return Response(
            {
                "model": self._model,
                "vllm_version": "mock",
                "epoch": self.epoch,
                "phase": "prepare" if running else "serving",
                "layers": self.layers,
                "stages": [{"name": name, "pid": _PID + rank} for rank, name in enumerate(self._stages)],
                "spare_stages": dict.fromkeys(self._nodes, 1),
                "recoveries": len(self._recoveries),
                "last_recovery": self._recoveries[-1] if self._recoveries else None,
                "change": running,
                "last_change": next(reversed(self._changes.values()), None),
            }
        )

    async def _reconfigure(self, request: Request) -> Response:
        body = msgspec.json.decode(request.body, type=dict[str, Any])
        layers = body.get("layers", "")
        if any(change["state"] == "running" for change in self._changes.values()):
            return error(409, "another change runs")
        if self._behaviour.change_outcome == "refuse" or not all(
            part.partition("@")[0].isdigit() for part in layers.split(",")
        ):
            return error(422, f"layers {layers!r} are refused")
        change = {
            "id": f"change-{len(self._changes) + 1}",
            "state": "running",
            "from": self.layers,
            "to": layers,
            "method": body.get("method", "pre_copy"),
            "started_at": time.time(),
        }
        self._changes[change["id"]] = change
        self._ended[change["id"]] = asyncio.Event()
        answer = Response(dict(change), 202)
        self._start(self._change(change))
        return answer

    async def _change(self, change: dict[str, Any]) -> None:
        if self._behaviour.change_outcome == "hang":
            return
        await asyncio.sleep(self._behaviour.change_ms / 1e3)
        if self._behaviour.change_outcome == "commit":
            self._engine.hold()
            await asyncio.sleep(self._behaviour.change_stall_ms / 1e3)
            self.layers, self.epoch = change["to"], self.epoch + 1
            change |= {"state": "committed", "cutover_at": time.time(), "bytes_moved": 4096, "rounds": 1}
            self._engine.release()
        else:
            change |= {"state": "aborted", "reason": "the mock server aborts changes, as told"}
        ended = time.time()
        change |= {
            "epoch": self.epoch,
            "ended_at": ended,
            "total_ms": (ended - change["started_at"]) * 1e3,
            "peak_extra_bytes": 8192,
        }
        self._ended[change["id"]].set()

    async def _report(self, request: Request) -> Response:
        name = request.path.rpartition("/")[2]
        change = self._changes.get(name)
        if change is None:
            return error(404, f"no change {name!r}")
        try:
            async with asyncio.timeout(float(request.query.get("wait", 0))):
                await self._ended[name].wait()
        except TimeoutError:
            pass
        return Response(change)

    async def _ask_capacity(self, _: Request) -> Response:
        return Response({**self._capacity, "at_most": _MOST, "waiting": False})

    async def _set_capacity(self, request: Request) -> Response:
        asked = msgspec.json.decode(request.body, type=dict[str, Any])
        self._capacity |= {name: value for name, value in asked.items() if name in _MOST}
        return Response((await self._ask_capacity(request)).content, 202)

    async def _story(self, _: Request) -> Response:
        told = [{"at": each["started_at"], "subject": name, "event": "planned"} for name, each in self._changes.items()]
        return Response({"events": told})
