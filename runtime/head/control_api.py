"""The control API: ``/midstream/v1/...`` on the port of vLLM's server, through vLLM's own plug for HTTP endpoints.

The routes only translate: every call goes to the pipeline in the engine's process over vLLM's utility calls
(`runtime.engine.control`), and refusals become OpenAI-style errors.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Self

from fastapi import APIRouter, FastAPI, Header, Path, Query, Request
from fastapi.responses import JSONResponse
from prometheus_client import REGISTRY
from pydantic import BaseModel, ConfigDict, Field, model_validator

from runtime.head.access import TOKEN_VARIABLE, AccessPolicy, is_loopback
from runtime.head.hold import Hold, HoldLimits
from runtime.head.metrics import FreshMetrics, PipelineCollector
from runtime.migration.protocol import Fallback, Method
from runtime.phase import open_phase_word

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Awaitable, Callable, Collection

    from starlette.datastructures import State
    from vllm.engine.protocol import EngineClient

_POLL_S = 0.1
_LOOK_AGAIN_S = 1.0
_WAKE_S = 60.0
_MOST_WAIT_S = 300.0
_STATUS_OF = {
    "busy": 409,
    "invalid": 422,
    "unknown": 404,
    "unchanged": 409,
    "superseded": 409,
    "last_stage": 409,
    "asleep": 503,
    "forbidden": 422,
    "guard_asked": 503,
    "guard_silent": 503,
}
_PASSING = frozenset({"asleep", "guard_asked"})  # refusals that are over in a moment

_HOLDER = "The instance of the stage's function that asks; the one that came last holds the stage."
_Key = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=1024)]

router = APIRouter(prefix="/midstream/v1")


class ReconfigurationRequest(BaseModel):
    """Body of ``POST /midstream/v1/reconfigurations``; of layers and precision, what is not given stays as it is."""

    model_config = ConfigDict(extra="forbid")

    layers: str | None = Field(None, min_length=1, max_length=10_000, examples=["8,12,10"])
    precision: str | None = Field(
        None, min_length=1, max_length=32, description="Of the weights, such as bfloat16. The KV keeps its type."
    )
    method: Method = Field(Method.PRE_COPY, description="How KV gets to layers that change their node.")
    fallback: Fallback = Field(Fallback.ABORT, description="What to do when pre-copy does not converge.")
    generation: int | None = Field(
        None, ge=1, description="Of the object that wants it; lower than one accepted before is refused."
    )

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        if self.layers is None and self.precision is None:
            raise ValueError("say which layers or which precision")
        return self


class AttachRequest(BaseModel):
    """Body of ``POST /midstream/v1/stages/{stage}/attach``."""

    model_config = ConfigDict(extra="forbid")

    node: str | None = Field(None, min_length=1, max_length=253, description="Where the stage shall be from now on.")
    holder: str | None = Field(None, min_length=1, max_length=253, description=_HOLDER)
    within_s: float = Field(60.0, gt=0, le=_MOST_WAIT_S, description="Seconds the answer may take.")


class ReleaseRequest(BaseModel):
    """Body of ``POST /midstream/v1/stages/{stage}/release``."""

    model_config = ConfigDict(extra="forbid")

    holder: str | None = Field(None, min_length=1, max_length=253, description=_HOLDER)
    within_s: float = Field(25.0, gt=0, le=_MOST_WAIT_S, description="Seconds the answer may take.")


class CapacityRequest(BaseModel):
    """Body of ``POST /midstream/v1/capacity``; what is not given stays as it is."""

    model_config = ConfigDict(extra="forbid")

    kv_blocks: int | None = Field(None, ge=2, description="Blocks of KV in all.")
    max_requests: int | None = Field(None, ge=1, description="Requests that run at once.")
    max_batch_tokens: int | None = Field(None, ge=1, description="Tokens computed in one batch.")
    preempt: bool = Field(
        False, description="Compute the youngest requests again later, when the blocks in use do not fit otherwise."
    )


class ControlPlugin:
    """What vLLM's server loads from the entry point group ``vllm.endpoint_plugins``."""

    name = "midstream"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Add the routes, and what holds requests while the pipeline is not awake."""
        app.include_router(router)
        collector = PipelineCollector()
        REGISTRY.register(collector)
        app.add_middleware(FreshMetrics, collector=collector, fetch=lambda: _metrics(app))
        word = open_phase_word()
        if word is not None:  # None when this server was not started by `midstream serve`
            # vLLM adds its own middleware after this and so around it: who has no key is refused before being held.
            app.add_middleware(Hold, standing=word.read, limits=HoldLimits.from_environment(os.environ))

    async def init_state(self, engine_client: EngineClient | None, state: State, args: Namespace) -> None:
        """Keep what the routes need."""
        local = bool(getattr(args, "uds", None)) or is_loopback(args.host)
        state.midstream_engine = engine_client
        state.midstream_access = AccessPolicy(local, os.environ.get(TOKEN_VARIABLE) or None)


@router.get("/status")
async def status(request: Request) -> JSONResponse:
    """What serves now: layout, stages, epoch, phase, the change under way and the last one."""
    return await _call(request, "status")


@router.post("/reconfigurations")
async def reconfigure(
    request: Request,
    body: ReconfigurationRequest,
    key: _Key = None,
    traceparent: Annotated[str | None, Header(max_length=64)] = None,
) -> JSONResponse:
    """Start a change; 202 with its report, 409 while another runs, 422 when it does not work or intents forbid it.

    Asked again with the same `Idempotency-Key`: 200 with the report of the same change, or the same refusal.
    """
    order = {**body.model_dump(mode="json"), "layers": body.layers or "", "key": key, "traceparent": traceparent}
    call = partial(_call, request, "reconfigure", order, success=202)
    response = await _patiently(call, _PASSING, time.monotonic() + _WAKE_S)
    if response.status_code == 202 and _content(response)["repeated"]:
        response.status_code = 200
    return response


@router.post("/stages/{stage}/attach")
async def attach(
    request: Request, stage: Annotated[int, Path(ge=0)], body: AttachRequest, key: _Key = None
) -> JSONResponse:
    """The function of a stage is there: what its release moved away comes back, to `node` if told."""
    call = partial(_call, request, "attach", stage, body.node, body.holder, key)
    return await _move(request, stage, call, within_s=body.within_s, done="attached", else_="unchanged")


@router.post("/stages/{stage}/release")
async def release(
    request: Request, stage: Annotated[int, Path(ge=0)], body: ReleaseRequest, key: _Key = None
) -> JSONResponse:
    """The function of a stage leaves: its layers go to the stages beside it. 409 for the last stage there is."""
    call = partial(_call, request, "release", stage, body.holder, key)
    return await _move(request, stage, call, within_s=body.within_s, done="released", else_="idle")


@router.get("/reconfigurations/{change}")
async def report(
    request: Request, change: str, wait: Annotated[float, Query(ge=0, le=_MOST_WAIT_S)] = 0.0
) -> JSONResponse:
    """A change's report; with `wait`, as soon as it ended or that many seconds passed."""
    deadline = time.monotonic() + wait
    while True:
        response = await _call(request, "report", change)
        ended = response.status_code != 200 or _content(response).get("ended_at") is not None
        if ended or time.monotonic() >= deadline:
            return response
        await asyncio.sleep(_POLL_S)


@router.delete("/reconfigurations/{change}")
async def cancel(request: Request, change: str) -> JSONResponse:
    """Stop a change that is not committed yet."""
    return await _call(request, "cancel", change)


@router.get("/capacity")
async def capacity(request: Request) -> JSONResponse:
    """The pipeline's limits now and at most, and what became of the last change of them."""
    return await _call(request, "capacity", None)


@router.post("/capacity")
async def change_capacity(request: Request, body: CapacityRequest) -> JSONResponse:
    """Change limits as soon as no batch is in flight; 202 with the limits as they are, 422 when it does not work."""
    return await _call(request, "capacity", body.model_dump(), success=202)


@router.get("/story")
async def whole_story(request: Request) -> JSONResponse:
    """The journal: the newest entries of all changes."""
    return await _call(request, "story", None, wrap="events")


@router.get("/story/{subject}")
async def story(request: Request, subject: str) -> JSONResponse:
    """What happened to one change or request, in order."""
    return await _call(request, "story", subject, wrap="events")


@router.get("/trace")
async def trace(request: Request) -> JSONResponse:
    """Which stage computed which batch when: Chrome trace events, for Perfetto."""
    return await _call(request, "trace", wrap="traceEvents")


async def _metrics(app: FastAPI) -> str:
    (text,) = await app.state.midstream_engine.collective_rpc("midstream.metrics")
    return str(text)


async def _move(
    request: Request, stage: int, call: Callable[[], Awaitable[JSONResponse]], *, within_s: float, done: str, else_: str
) -> JSONResponse:
    """Let a stage come or go, once no other change is under way, and answer when that has ended."""
    begun_at = time.monotonic()
    deadline = begun_at + within_s
    response = await _patiently(call, _PASSING | {"busy"}, deadline)
    if response.status_code != 200:
        return response
    answer = _content(response)
    change, state = answer["change"], else_
    if change is not None:
        ended = await report(request, change["id"], max(0.0, deadline - time.monotonic()))
        change = _content(ended)
        if change.get("ended_at") is None:
            return _error(
                504, f"{change['id']} did not end within {within_s:g} s; it goes on", "late", change=change["id"]
            )
        if change["state"] != "committed":
            return _error(409, f"{change['id']} was aborted: {change['reason']}", "aborted", change=change["id"])
        state = done
    elif answer["away"] and done == "attached":
        state = "released"  # and so it stays, until somebody asks for it by event
    ms = round(1e3 * (time.monotonic() - begun_at), 1) if change is None else change["total_ms"]
    return JSONResponse({"stage": stage, "node": answer["node"], "change": change, "state": state, "ms": ms})


async def _call(
    request: Request, method: str, *arguments: object, success: int = 200, wrap: str | None = None
) -> JSONResponse:
    refusal = request.app.state.midstream_access.refusal(request.headers)
    if refusal is not None:
        return _error(refusal[0], refusal[1], "access_denied")
    engine: EngineClient = request.app.state.midstream_engine
    answer = await _ask(engine, method, arguments)
    if answer is None:
        return _error(503, "the engine has ended, and this server is ending too", "unavailable")
    if isinstance(answer, dict) and "refused" in answer:
        kind = answer["refused"]
        return _error(_STATUS_OF[kind], answer["message"], kind, change=answer.get("change"))
    return JSONResponse({wrap: answer} if wrap else answer, success)


async def _patiently(
    call: Callable[[], Awaitable[JSONResponse]], kinds: Collection[str], deadline: float
) -> JSONResponse:
    """Call again as long as it is refused for one of these reasons, which pass."""
    while True:
        response = await call()
        if response.status_code < 400 or time.monotonic() >= deadline:
            return response
        if _content(response)["error"]["type"] not in kinds:
            return response
        await asyncio.sleep(_POLL_S)


async def _ask(engine: EngineClient, method: str, arguments: tuple[object, ...]) -> Any:
    """Call the pipeline; None when the engine has ended, of which nobody tells who waits for its answer."""
    call = asyncio.ensure_future(engine.collective_rpc(f"midstream.{method}", args=arguments))
    try:
        while not (await asyncio.wait({call}, timeout=_LOOK_AGAIN_S))[0]:
            if engine.errored:
                return None
    finally:
        call.cancel()
    (answer,) = call.result()
    return answer


def _content(response: JSONResponse) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(bytes(response.body))
    return content


def _error(code: int, message: str, kind: str, **details: Any) -> JSONResponse:
    error = {"message": message, "type": kind, "param": None, "code": code}
    return JSONResponse({"error": error, **{key: value for key, value in details.items() if value}}, code)
