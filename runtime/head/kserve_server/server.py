"""Put the head behind a `kserve.ModelServer`: what KServe's own server leaves open is closed here.

That is: it listens where it is told and not on all interfaces; it is ready when the model is and not always; whatever
cannot be read is a 400 with one sentence; a refusal of the head stays what it is; and a request ends with its client.

Caveats: KServe reads ``sys.argv`` when it is imported, so whoever starts this takes his own arguments out first. The
address is set between KServe's making its server and running it, which is nothing that KServe promises.
"""

from __future__ import annotations

import logging
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from kserve import ModelServer
from kserve.errors import InferenceError, InvalidInput, ModelNotFound, ModelNotReady, ServerNotReady
from kserve.logging import logger
from kserve.model_server import app
from kserve.protocol.dataplane import DataPlane, has_binary_headers

from runtime.head.kserve_server.model import HeadModel, HeadRefusedError
from runtime.head.kserve_server.passthrough import Front, head_transport

if TYPE_CHECKING:
    from fastapi import Request
    from kserve import BaseKServeModel

# What KServe's decoders raise on bytes that are no request.
_UNREADABLE = (AttributeError, IndexError, InferenceError, KeyError, TypeError, ValueError, struct.error)


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What to serve: the head's address, the model's name for KServe, where to listen, and how long to drain."""

    model_name: str
    head: str
    host: str
    http_port: int
    drain_s: int


class HeadDataPlane(DataPlane):
    """KServe's data plane, for a model that is ready at some times and not at others."""

    async def ready(self) -> bool:
        """Return whether every model is ready."""
        return all([await model.healthy() for model in self.model_registry.get_models().values()])

    async def get_model(self, name: str) -> BaseKServeModel:
        """Return a model; it is not asked how it is: the head's own refusal says more."""
        return self.get_model_from_registry(name)

    async def model_ready(self, model_name: str, disable_predictor_health_check: bool = False) -> bool:
        """Return whether a model is ready; for requests, which disable the check, whether there is one."""
        model = self.get_model_from_registry(model_name)
        return disable_predictor_health_check or await model.healthy()

    def decode(self, body: Any, headers: dict[str, str], *arguments: Any, **options: Any) -> tuple[Any, dict[str, Any]]:
        """Read a request; JSON may name its character set."""
        if not body:
            raise InvalidInput("the request has no body")
        try:
            return super().decode(body, _with_plain_type(headers), *arguments, **options)
        except InvalidInput:
            raise
        except _UNREADABLE as error:
            raise InvalidInput(f"the request cannot be read: {type(error).__name__}: {error}") from error

    def encode(
        self, model_name: str, response: Any, headers: dict[str, str], req_attributes: dict[str, Any]
    ) -> tuple[Any, dict[str, str]]:
        """Word an answer, as a CloudEvent if the request was one."""
        if not req_attributes and has_binary_headers(headers):
            # KServe reads an event's attributes for V1 only, and fails when CE_MERGE wants them in the answer.
            found = {name.removeprefix("ce-"): value for name, value in headers.items() if name.startswith("ce-")}
            req_attributes = {"time": "", **found}
        return super().encode(model_name, response, _with_plain_type(headers), req_attributes)


class HeadModelServer(ModelServer):
    """KServe's server on one address, with what belongs to the head handed on."""

    def __init__(self, options: ServerOptions) -> None:
        super().__init__(http_port=options.http_port, workers=1, enable_grpc=False, grace_period=options.drain_s)
        self.dataplane = HeadDataPlane(self.registered_models)
        self._host = options.host

    async def _serve(self) -> None:
        self._rest_server.config.host = self._host
        await super()._serve()


def serve(options: ServerOptions) -> None:
    """Serve in this process until SIGTERM or SIGINT, and then until no request is left, or `drain_s` have passed."""
    transport = head_transport()
    app.add_middleware(Front, head=options.head, model_name=options.model_name, transport=transport)
    app.add_exception_handler(RequestValidationError, _unreadable)
    app.add_exception_handler(HeadRefusedError, _refused)
    logger.addFilter(Brief())
    HeadModelServer(options).start([HeadModel(options.model_name, options.head, transport)])


class Brief(logging.Filter):
    """Logs in a line what KServe logs with a traceback but is no bug, such as every probe while the head starts."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Shorten the record if it is of that kind."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, InvalidInput | ModelNotFound | ModelNotReady | ServerNotReady):
            record.msg, record.args, record.exc_info = "refused: %s", (error,), None
        return True


def _with_plain_type(headers: dict[str, str]) -> dict[str, str]:
    kind, _, _ = headers.get("content-type", "").partition(";")
    return {**headers, "content-type": kind.strip().lower()}


async def _unreadable(_: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]  # a body may be JSON or binary, and the first complaint is about JSON
    where = ".".join(str(part) for part in first["loc"])
    reason = first.get("ctx", {}).get("error") or first["msg"]
    return JSONResponse({"error": f"the request cannot be read: {where}: {reason}"}, 400)


async def _refused(_: Request, error: HeadRefusedError) -> JSONResponse:
    headers = {"Retry-After": error.retry_after} if error.retry_after else None
    return JSONResponse({"error": str(error)}, error.status, headers)
