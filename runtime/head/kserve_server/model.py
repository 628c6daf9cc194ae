"""The head as a `kserve.Model`: infer and predict are completions, and it is ready while the head is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
from kserve import InferInput, InferOutput, InferRequest, InferResponse, Model
from kserve.errors import InvalidInput
from kserve.utils.utils import generate_uuid

from runtime.head.kserve_server import completion
from runtime.head.kserve_server.passthrough import CONNECT_S, gone

if TYPE_CHECKING:
    from collections.abc import Mapping

_HEALTH_S = 5.0
_PASSED_ON = ("authorization", "traceparent", "tracestate", "x-request-id")


class HeadRefusedError(RuntimeError):
    """The head did not complete; the message is its own. `retry_after` is its header of that name, if it sent one."""

    def __init__(self, status: int, message: str, retry_after: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class HeadModel(Model):
    """The model that a head serves.

    Args:
        name: the model's name for KServe; the head has one model and is not asked for it by name.
        head: the head's address.
        transport: what connects to the head.

    """

    def __init__(self, name: str, head: str, transport: httpx.AsyncBaseTransport) -> None:
        super().__init__(name)
        # Without a read timeout, as in `passthrough`: how long a request may take is the head's to say.
        self._http = httpx.AsyncClient(
            base_url=head, transport=transport, timeout=httpx.Timeout(None, connect=CONNECT_S), trust_env=False
        )
        self.ready = True  # to be registered by the server; whether it can answer is for `healthy` to say

    async def healthy(self) -> bool:
        """Return whether the head says that it can answer."""
        try:
            response = await self._http.get("/health", timeout=_HEALTH_S)
        except httpx.TransportError:
            return False
        return response.status_code == httpx.codes.OK

    def get_input_types(self) -> list[dict[str, Any]]:
        """Return what V2 metadata says of the inputs."""
        return completion.input_types()

    def get_output_types(self) -> list[dict[str, Any]]:
        """Return what V2 metadata says of the outputs."""
        return completion.output_types()

    async def predict(
        self,
        payload: object,
        headers: Mapping[str, str] | None = None,
        response_headers: dict[str, str] | None = None,  # noqa: ARG002 - what KServe calls it with
    ) -> InferResponse | dict[str, Any]:
        """Complete the prompts of a V2 or V1 request.

        Raises:
            InvalidInput: it is no completion request.
            HeadRefusedError: the head did not complete.

        """
        if isinstance(payload, InferRequest):
            wanted = [output.name for output in payload.request_outputs or ()]
            unknown = set(wanted) - completion.OUTPUTS.keys()
            if unknown:
                raise InvalidInput(f"there is no output {min(unknown)!r}; there are {', '.join(completion.OUTPUTS)}")
            body = _checked(lambda: completion.from_tensors(map(_tensor, payload.inputs), payload.parameters or {}))
            return _infer_response(payload, self.name, await self._complete(body, headers or {}))
        if not isinstance(payload, dict):
            raise InvalidInput('the request is no JSON object such as {"instances": ["Once upon a time"]}')
        body = _checked(lambda: completion.from_instances(payload))
        return {
            "predictions": [
                {name: getattr(answer, name) for name in completion.OUTPUTS}
                for answer in await self._complete(body, headers or {})
            ]
        }

    async def _complete(self, body: dict[str, Any], headers: Mapping[str, str]) -> list[completion.Answer]:
        passed_on = {name: headers[name] for name in _PASSED_ON if name in headers}
        try:
            response = await self._http.post("/v1/completions", json=body, headers=passed_on)
        except httpx.TransportError as error:
            refusal = gone()
            raise HeadRefusedError(503, refusal.reason, str(refusal.retry_after_s)) from error
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if response.status_code != httpx.codes.OK:
            raise HeadRefusedError(response.status_code, _message(answer), response.headers.get("retry-after"))
        try:
            return completion.answers(answer, len(body["prompt"]))
        except completion.HeadAnswerError as error:
            raise HeadRefusedError(502, str(error)) from error


def _checked(read: Any) -> dict[str, Any]:
    try:
        body: dict[str, Any] = read()
    except completion.InvalidCompletionError as error:
        raise InvalidInput(str(error)) from error
    return body


def _tensor(given: InferInput) -> completion.Tensor:
    return completion.Tensor(given.name, given.datatype, given.shape, given.data)


def _infer_response(request: InferRequest, model_name: str, answers: list[completion.Answer]) -> InferResponse:
    return InferResponse(
        response_id=request.id or generate_uuid(),
        model_name=model_name,
        infer_outputs=[
            InferOutput(name, [len(answers)], datatype, [getattr(answer, name) for answer in answers])
            for name, datatype in completion.OUTPUTS.items()
        ],
        use_binary_outputs=request.use_binary_outputs,
        requested_outputs=request.request_outputs,
    )


def _message(answer: Any) -> str:
    """Return the message of an error like OpenAI's."""
    error = answer.get("error") if isinstance(answer, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return str(message or "the head gave no reason; its log may")
