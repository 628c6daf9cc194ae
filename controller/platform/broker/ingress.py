"""The broker over HTTP, for this machine only.

============================  ==========================================================================================
``POST /``                    an event, binary or structured: 202, and its number in ``Midstream-Sequence``. 400 it is
                              none (or made too many hops), 413 too large, 415 a batch, 429 a queue is full, 503 the
                              broker stops; the last two with ``Retry-After``, and nobody has the event then
``GET /events``               recent events (``after``, ``subject``, ``type``, ``limit``), waiting ``wait`` seconds for
                              one; ``after=latest`` gives the newest number and no event
``GET /triggers``             all triggers; ``GET``, ``PUT`` (a Knative Trigger object as JSON), ``DELETE``
                              ``/triggers/NAME`` one of them, live
``GET /healthz, /metrics``    200 while it accepts events; counters for Prometheus
============================  ==========================================================================================

Whoever may send an event may change the pipeline through it. So the rule is the control API's: on loopback everybody on
the machine, but no web page; with ``MIDSTREAM_CONTROL_TOKEN`` set only who knows it. ``/healthz`` is open.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from controller.platform.broker.broker import PublishError
from controller.platform.broker.ring import MOST_WAIT_S, SEQUENCE_HEADER, Page, Wanted
from controller.platform.broker.trigger import TriggerError, parse_trigger
from controller.platform.broker.wire import MalformedEvent, read
from runtime.head.access import TOKEN_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import ASGIApp, Receive, Scope, Send

    from controller.platform.broker.broker import Broker
    from controller.platform.broker.trigger import Trigger
    from runtime.head.access import AccessPolicy

_MOST_PAGE = 1000
_REFUSALS = {
    401: f"the broker needs 'Authorization: Bearer <the value of {TOKEN_VARIABLE}>'",
    403: "the broker does not answer web pages, nor other machines; use midstream, curl or a program on this machine",
}


def make_app(broker: Broker, services: Mapping[str, str], access: AccessPolicy) -> ASGIApp:
    """Return the ASGI application of a broker; `services` are the addresses that triggers may name."""
    ingress = _Ingress(broker, services)
    app = Starlette(
        routes=[
            Route("/", ingress.publish, methods=["POST"]),
            Route("/events", ingress.events, methods=["GET"]),
            Route("/triggers", ingress.triggers, methods=["GET"]),
            Route("/triggers/{name}", ingress.trigger, methods=["GET"]),
            Route("/triggers/{name}", ingress.put_trigger, methods=["PUT"]),
            Route("/triggers/{name}", ingress.delete_trigger, methods=["DELETE"]),
            Route("/healthz", ingress.healthz, methods=["GET"]),
            Route("/metrics", ingress.metrics, methods=["GET"]),
        ],
        exception_handlers={HTTPException: _http_error, ClientDisconnect: _disconnected},
    )
    return _Guard(app, access)


class _Guard:
    """Lets through who may use the broker."""

    def __init__(self, app: ASGIApp, access: AccessPolicy) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != "/healthz":
            refusal = self._access.refusal(Headers(scope=scope))
            if refusal is not None:
                await _error(refusal[0], _REFUSALS[refusal[0]], "access_denied")(scope, receive, send)
                return
        await self._app(scope, receive, send)


class _Ingress:
    """The endpoints."""

    def __init__(self, broker: Broker, services: Mapping[str, str]) -> None:
        self._broker = broker
        self._services = services

    async def publish(self, request: Request) -> Response:
        """Take an event."""
        if request.headers.get("content-type", "").lower().startswith("application/cloudevents-batch"):
            raise self._refused(415, "batches of events are not taken; send each event in a request of its own")
        body = await self._body(request)
        try:
            number = self._broker.publish(read(request.headers.items(), body))
        except MalformedEvent as error:
            raise self._refused(400, str(error)) from error
        except PublishError as error:
            later = error.retry_after_s
            return _error(error.status, str(error), error.kind, {} if later is None else _retry_after(later))
        return Response(status_code=202, headers={SEQUENCE_HEADER: str(number)})

    async def events(self, request: Request) -> Response:
        """Show recent events, or wait for one."""
        ring, query = self._broker.ring, request.query_params
        if query.get("after") == "latest":
            return _json(Page([], ring.last, missed=False))
        after = int(_number(query, "after", 0, 2**53))
        wait_s = min(_number(query, "wait", 0, 2**53), MOST_WAIT_S)
        most = int(_number(query, "limit", 100, _MOST_PAGE))
        wanted = Wanted(query.get("subject"), query.get("type"))
        return _json(await ring.wait(after, wanted, most, wait_s))

    async def triggers(self, _: Request) -> Response:
        """Show all triggers."""
        return _json({"triggers": [_view(trigger, depth) for trigger, depth in self._broker.triggers()]})

    async def trigger(self, request: Request) -> Response:
        """Show one trigger."""
        name = request.path_params["name"]
        found = [_view(trigger, depth) for trigger, depth in self._broker.triggers() if trigger.name == name]
        return _json(found[0]) if found else _unknown(name)

    async def put_trigger(self, request: Request) -> Response:
        """Add or replace a trigger."""
        name, body = request.path_params["name"], await self._body(request)
        try:
            trigger = parse_trigger(msgspec.json.decode(body), self._services)
        except TriggerError as error:
            raise HTTPException(422, str(error)) from error
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise HTTPException(400, f"the body is no JSON: {error}") from error
        if trigger.name != name:
            raise HTTPException(422, f"metadata.name is {trigger.name!r}, but the path says {name!r}")
        created = self._broker.put_trigger(trigger)
        return _json(_view(trigger, 0), 201 if created else 200)

    async def delete_trigger(self, request: Request) -> Response:
        """Remove a trigger."""
        name = request.path_params["name"]
        left = await self._broker.remove_trigger(name)
        return _unknown(name) if left is None else _json({"name": name, "undelivered": len(left)})

    async def healthz(self, _: Request) -> Response:
        """Say whether events are accepted."""
        return _error(503, "the broker is stopping", "stopping") if self._broker.closed else _json({"status": "ok"})

    async def metrics(self, _: Request) -> Response:
        """Show the counters."""
        return Response(generate_latest(self._broker.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def _body(self, request: Request) -> bytes:
        most, body = self._broker.limits.event_bytes, b""
        async for part in request.stream():
            body += part
            if len(body) > most:
                raise self._refused(413, f"larger than {most} bytes; refer to large data by a URL")
        return body

    def _refused(self, status: int, message: str) -> HTTPException:
        self._broker.metrics.refused.labels(_KINDS[status]).inc()
        return HTTPException(status, message)


_KINDS = {400: "malformed_event", 404: "unknown", 405: "method", 413: "too_large", 415: "batch", 422: "invalid"}


def _view(trigger: Trigger, depth: int) -> dict[str, Any]:
    return {
        "name": trigger.name,
        "subscriber": trigger.subscriber,
        "dead_letter_sink": trigger.delivery.dead_letter_sink,
        "queue_depth": depth,
        "manifest": trigger.manifest,
    }


def _number(query: Mapping[str, str], name: str, default: float, most: float) -> float:
    text = query.get(name, str(default))
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= most:
        raise HTTPException(400, f"{name} must be a number from 0 to {most:g}, not {text[:40]!r}")
    return number


def _json(content: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")


def _retry_after(seconds: float) -> dict[str, str]:
    return {"Retry-After": str(math.ceil(seconds))}


def _error(status: int, message: str, kind: str, headers: Mapping[str, str] | None = None) -> Response:
    response = _json({"error": {"message": message, "type": kind, "param": None, "code": status}}, status)
    response.headers.update(dict(headers or {}))
    return response


def _unknown(name: str) -> Response:
    return _error(404, f"there is no trigger {name!r}; GET /triggers shows those that there are", "unknown")


async def _http_error(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    message = error.detail if isinstance(error, HTTPException) else str(error)
    return _error(status, message, _KINDS.get(status, "error"), getattr(error, "headers", None))


async def _disconnected(_: Request, __: Exception) -> Response:
    """Answer nobody: the client has gone before it had sent everything."""
    return Response(status_code=400)
