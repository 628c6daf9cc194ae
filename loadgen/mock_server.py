"""A mock of a Midstream server: OpenAI completions over server-sent events, and the control API.

It lets the load generator be tested, and experiments be rehearsed, in seconds and without a model. Start it with
`python -m loadgen.mock_server --port 8000 --token-ms 5`; flags of a real server that it does not know are accepted and
ignored, so that it can stand in for one in any command line. It needs starlette and uvicorn, which come with vLLM.
"""

import argparse
import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import fields
from typing import Any, cast, get_args

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from loadgen.mock_engine import Behaviour, Fault, FaultKind, MockEngine, Sent

MODEL = "mock-model"
_MOST = {"kv_blocks": 1000, "max_requests": 100, "max_batch_tokens": 2048}
_PID = 10_000_000  # beyond the largest id Linux gives out: nobody can be hit by mistake


class MockServer:
    """The HTTP side: routes, the shape of chunks, and the state of the one change that may run."""

    def __init__(self, behaviour: Behaviour, layers: str = "15,15") -> None:
        self.behaviour = behaviour
        self.engine = MockEngine(behaviour)
        self.layers = layers
        self.epoch = 0
        self.changes: dict[str, dict[str, Any]] = {}
        self.ended: dict[str, asyncio.Event] = {}
        self.recoveries: list[dict[str, Any]] = []
        self.capacity = dict(_MOST)
        self._nodes = [node for part in layers.split(",") if (node := part.partition("@")[2])]
        self._stages = [f"stage-{number}" for number in range(1, len(layers.split(",")) + 1)]
        self._requests = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def app(self) -> Starlette:
        """Return the ASGI application."""
        prefix = "/midstream/v1"
        return Starlette(
            routes=[
                Route("/health", self._health),
                Route("/v1/models", self._models),
                Route("/v1/completions", self._completions, methods=["POST"]),
                Route(f"{prefix}/status", self._status),
                Route(f"{prefix}/reconfigurations", self._reconfigure, methods=["POST"]),
                Route(f"{prefix}/reconfigurations/{{id}}", self._report),
                Route(f"{prefix}/capacity", self._capacity, methods=["GET", "POST"]),
                Route(f"{prefix}/story", self._story),
            ]
        )

    async def _health(self, _: Request) -> Response:
        return Response()

    async def _models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    async def _completions(self, request: Request) -> Response:
        if self.behaviour.refuse_status:
            return _error(self.behaviour.refuse_status, "the mock server refuses completions")
        return StreamingResponse(self._events(await request.json()), media_type="text/event-stream")

    async def _events(self, body: dict[str, Any]) -> AsyncIterator[str]:
        self._requests += 1
        head: dict[str, Any] = {"id": f"cmpl-{self._requests}", "created": int(time.time()), "model": MODEL}
        wants_ids = body.get("return_token_ids", False) and self.behaviour.send_token_ids
        prompt, limit, first = body["prompt"], body["max_tokens"], True
        stream = self.engine.generate(prompt, body.get("temperature", 1.0), body.get("seed"), limit)
        async for sent in stream:
            match sent.fault:
                case "error":
                    yield _event({"error": {"message": "the mock engine failed", "type": "InternalServerError"}})
                    yield _event("[DONE]")
                    return
                case "disconnect":
                    raise ConnectionAbortedError("the mock server breaks the connection, as told")
                case "truncate":
                    return
                case "abort":
                    yield _event({**head, "choices": [_choice(sent, wants_ids) | {"finish_reason": "abort"}]})
                    yield _event("[DONE]")
                    return
                case "garbage":
                    yield "data: {not json\n\n"
                case "rename":
                    head["id"] += "-renamed"
            choice = _choice(sent, wants_ids)
            if first and wants_ids:
                choice["prompt_token_ids"] = list(prompt.encode())
            first = False
            yield _event({**head, "choices": [choice]})
        yield _event({**head, "choices": [{"index": 0, "text": "", "finish_reason": "length", "token_ids": []}]})
        yield _event({**head, "choices": [], "usage": {"completion_tokens": limit}})
        yield _event("[DONE]")

    async def _status(self, _: Request) -> Response:
        running = next((c["id"] for c in self.changes.values() if c["state"] == "running"), None)
        return JSONResponse(
            {
                "model": MODEL,
                "vllm_version": "mock",
                "epoch": self.epoch,
                "phase": "prepare" if running else "serving",
                "layers": self.layers,
                "stages": [{"name": name, "pid": _PID + rank} for rank, name in enumerate(self._stages)],
                "spare_stages": dict.fromkeys(self._nodes, 1),
                "recoveries": len(self.recoveries),
                "last_recovery": self.recoveries[-1] if self.recoveries else None,
                "change": running,
                "last_change": next(reversed(self.changes.values()), None),
            }
        )

    async def _reconfigure(self, request: Request) -> Response:
        body = await request.json()
        layers = body.get("layers", "")
        if any(change["state"] == "running" for change in self.changes.values()):
            return _error(409, "another change runs")
        if self.behaviour.change_outcome == "refuse" or not all(
            part.partition("@")[0].isdigit() for part in layers.split(",")
        ):
            return _error(422, f"layers {layers!r} are refused")
        change = {
            "id": f"change-{len(self.changes) + 1}",
            "state": "running",
            "from": self.layers,
            "to": layers,
            "method": body.get("method", "pre_copy"),
            "started_at": time.time(),
        }
        self.changes[change["id"]] = change
        self.ended[change["id"]] = asyncio.Event()
        task = asyncio.create_task(self._change(change))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return JSONResponse(change, status_code=202)

    async def _change(self, change: dict[str, Any]) -> None:
        if self.behaviour.change_outcome == "hang":
            return
        await asyncio.sleep(self.behaviour.change_ms / 1e3)
        if self.behaviour.change_outcome == "commit":
            self.engine.hold()
            await asyncio.sleep(self.behaviour.change_stall_ms / 1e3)
            self.layers, self.epoch = change["to"], self.epoch + 1
            change |= {"state": "committed", "cutover_at": time.time(), "bytes_moved": 4096, "rounds": 1}
            self.engine.release()
        else:
            change |= {"state": "aborted", "reason": "the mock server aborts changes, as told"}
        ended = time.time()
        change |= {
            "epoch": self.epoch,
            "ended_at": ended,
            "total_ms": (ended - change["started_at"]) * 1e3,
            "peak_extra_bytes": 8192,
        }
        self.ended[change["id"]].set()

    def lose(self, pid: int) -> None:
        """Lose a stage, as if its process had been killed: streams stand still until another has taken its place."""
        rank = pid - _PID
        lost = self._stages[rank]
        self._stages[rank] += "-replaced"
        self.engine.hold()

        async def recover() -> None:
            await asyncio.sleep(self.behaviour.change_stall_ms / 1e3)
            self.recoveries.append(
                {
                    "id": f"recovery-{len(self.recoveries) + 1}",
                    "stages": [lost],
                    "total_ms": self.behaviour.change_stall_ms,
                    "replayed_batches": 1,
                }
            )
            self.engine.release()

        if self.behaviour.change_outcome == "commit":
            task = asyncio.create_task(recover())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _report(self, request: Request) -> Response:
        change = self.changes.get(request.path_params["id"])
        if change is None:
            return _error(404, f"no change {request.path_params['id']!r}")
        try:
            async with asyncio.timeout(float(request.query_params.get("wait", 0))):
                await self.ended[change["id"]].wait()
        except TimeoutError:
            pass
        return JSONResponse(change)

    async def _capacity(self, request: Request) -> Response:
        asked = await request.json() if request.method == "POST" else {}
        self.capacity |= {name: value for name, value in asked.items() if name in _MOST}
        return JSONResponse({**self.capacity, "at_most": _MOST, "waiting": False}, status_code=202 if asked else 200)

    async def _story(self, _: Request) -> Response:
        told = [{"at": each["started_at"], "subject": name, "event": "planned"} for name, each in self.changes.items()]
        return JSONResponse({"events": told})


def _choice(sent: Sent, wants_ids: bool) -> dict[str, Any]:
    text = "".join(f" {token}" for token in sent.token_ids)
    return {"index": 0, "text": text} | ({"token_ids": list(sent.token_ids)} if wants_ids else {})


def _event(payload: dict[str, Any] | str) -> str:
    return f"data: {payload if isinstance(payload, str) else json.dumps(payload)}\n\n"


def _error(status: int, message: str) -> Response:
    error = {"message": message, "type": "MockError", "param": None, "code": status}
    return JSONResponse({"error": error}, status_code=status)


def _fault(text: str) -> Fault:
    kind, at_token, *stall_ms = text.split(":")
    if kind not in get_args(FaultKind):
        raise ValueError(f"fault {kind!r} is none of {', '.join(get_args(FaultKind))}")
    return Fault(cast("FaultKind", kind), int(at_token), *map(float, stall_ms))


def main() -> None:
    """Serve on 127.0.0.1 until SIGTERM."""
    parser = argparse.ArgumentParser(description="A mock of a Midstream server", allow_abbrev=False)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--layers", default="15,15")
    parser.add_argument("--fault", type=_fault, help="KIND:AT_TOKEN or stall:AT_TOKEN:MS")
    for field in fields(Behaviour):
        if field.name not in ("fault", "send_token_ids"):
            default = field.default
            kind = type(default) if default is not None else str
            parser.add_argument("--" + field.name.replace("_", "-"), type=kind, default=default)
    known, _ = parser.parse_known_args()
    settings = {key: value for key, value in vars(known).items() if key not in ("port", "layers")}
    server = MockServer(Behaviour(**settings), known.layers)
    uvicorn.run(
        server.app(), port=known.port, log_level="warning", ws="none", lifespan="off", timeout_graceful_shutdown=1
    )


if __name__ == "__main__":
    main()
