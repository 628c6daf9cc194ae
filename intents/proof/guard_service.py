"""The transfer guard over HTTP, for a runtime that does not import the intents.

`POST /check` takes what is to move:

    {"workload": "chat", "old_nodes": ["n1"], "new_nodes": ["n1", "n2"], "version": "7",
     "transfers": [{"source": "n1", "target": "n2", "path": ["s1", "s2"]}], "state": ["kv", "weights"]}

and answers `{"holds": true or false, "reason": "...", "checks": [...]}`. `path`, `state` and `version` may be left out.
Anything else than a 200 with `holds` true means: do not move. Outside loopback a bearer token is required.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse
from starlette.routing import Route

from intents.access import is_loopback, presents
from intents.errors import IntentsError
from intents.model.intent import State  # noqa: TC001 - pydantic reads it
from intents.proof.transfer import EVERY_STATE, Transfer, TransferGuard

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from starlette.requests import Request

    from intents.proof.report import Report

_MOST_BYTES = 1 << 20
Names = Annotated[tuple[str, ...], Field(max_length=1000)]


class _Transfer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    source: str
    target: str
    path: Names | None = None


class _Question(BaseModel):
    model_config = ConfigDict(extra="forbid")
    workload: str
    old_nodes: Names
    new_nodes: Names
    transfers: Annotated[tuple[_Transfer, ...], Field(max_length=1000)]
    state: Annotated[tuple[State, ...], Field(min_length=1)] = EVERY_STATE
    version: str | None = None


def application(
    guard: Callable[[], TransferGuard],
    installed: Callable[[], Sequence[dict[str, Any]]],
    host: str,
    token: str | None,
) -> Starlette:
    """Return the HTTP form of a guard.

    Args:
        guard: Returns the guard of the current snapshot and the active intents.
        installed: Returns the flow rules as installed, for transfers without a path.
        host: Address that it will be served at.
        token: What callers must present; may be None on loopback only.

    Raises:
        IntentsError: the address is not loopback, and there is no token.
    """
    if token is None and not is_loopback(host):
        raise IntentsError(
            f"the transfer guard would answer anybody at {host}: give it a token, or serve it on loopback"
        )

    async def check(request: Request) -> JSONResponse:
        if token is not None and not presents(request.headers.get("Authorization", ""), token):
            return JSONResponse({"error": "a bearer token is required"}, 401, {"WWW-Authenticate": "Bearer"})
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > _MOST_BYTES:
                return JSONResponse({"error": f"the question has more than {_MOST_BYTES} bytes"}, 413)
        try:
            question = _Question.model_validate_json(bytes(body))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "body"
            return JSONResponse({"error": f"{where}: {first['msg']}"}, 400)
        try:
            report = await run_in_threadpool(_judge, guard(), question, installed)
        except IntentsError as error:  # what is installed could not be read: nothing is proven
            return JSONResponse({"error": str(error)}, 503)
        return JSONResponse(
            {
                "holds": report.holds,
                "reason": "; ".join(dict.fromkeys(each.reason for each in report.failures)),
                "checks": [asdict(each) for each in report.checks],
            }
        )

    return Starlette(routes=[Route("/check", check, methods=["POST"])])


def _judge(guard: TransferGuard, question: _Question, installed: Callable[[], Sequence[dict[str, Any]]]) -> Report:
    transfers = [Transfer(each.source, each.target, each.path) for each in question.transfers]
    flows = installed() if any(each.path is None for each in transfers) else ()
    return guard.judge(
        question.workload,
        question.old_nodes,
        question.new_nodes,
        transfers,
        flows=flows,
        state=question.state,
        version=question.version,
    )
