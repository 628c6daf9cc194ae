"""The mock server: OpenAI completions and chat over server-sent events, and Midstream's control API.

It lets the load generator be tested, experiments be rehearsed, and clients be checked in CI, in seconds and without a
model. What it generates and when follows from `loadgen.mock.behaviour`. Its tokeniser makes one token of each byte.

    POST /v1/completions, /v1/chat/completions    streamed or whole; `return_token_ids`, `stream_options` as in vLLM
    POST /tokenize                                count and ids, as in vLLM
    GET  /v1/models, /health
    GET  /mock/truth                              how late its own chunks were, and how its streams ended
    GET  /mock/times                              if told to: when each chunk was due and was sent, by X-Request-Id
    /midstream/v1/...                             see `loadgen.mock.control`
"""

import hmac
from collections import Counter
from typing import Any

import msgspec

from loadgen.clock import now_ns
from loadgen.mock.behaviour import Behaviour, TokenSource, script
from loadgen.mock.control import ControlApi
from loadgen.mock.engine import MockEngine
from loadgen.mock.events import EventShape
from loadgen.mock.http import Connection, EventStream, Request, Response, Routes, error
from loadgen.mock.stream import MockStream, Times

MODEL = "mock-model"
_DEFAULT_TOKENS = 16


class _Message(msgspec.Struct):
    role: str
    content: str | list[dict[str, Any]] | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False
    continuous_usage_stats: bool = False


class _Body(msgspec.Struct):
    """A request for tokens; fields that the mock has no use for are skipped."""

    prompt: str | list[int] | None = None
    messages: list[_Message] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None
    stream: bool = False
    stream_options: _StreamOptions | None = None
    return_token_ids: bool | None = None


class MockServer:
    """The state behind all connections; make it on the running loop.

    Args:
        behaviour: What it does.
        layers: The layout that its control API starts from.
        model: The name it serves its model by.
        api_key: What clients have to send as bearer; None to let anyone in.
        record_times: Keep when each chunk was due and was sent, for `GET /mock/times` (16 bytes a chunk).
    """

    def __init__(
        self,
        behaviour: Behaviour,
        layers: str = "15,15",
        *,
        model: str = MODEL,
        api_key: str | None = None,
        record_times: bool = False,
    ) -> None:
        self.behaviour = behaviour
        self.engine = MockEngine(behaviour)
        self.control = ControlApi(behaviour, self.engine, model, layers)
        self.ends: Counter[str] = Counter()
        self.open_streams = 0
        self.most_streams = 0
        self._model = model
        self._api_key = api_key
        self._times: dict[str, Times] | None = {} if record_times else None
        self._requests = 0
        self._occurrences: Counter[int] = Counter()
        self.routes = Routes(
            handlers={
                ("GET", "/health"): self._health,
                ("GET", "/v1/models"): self._models,
                ("POST", "/tokenize"): self._tokenize,
                ("GET", "/mock/truth"): self._truth,
                ("GET", "/mock/times"): self._send_times,
                **self.control.handlers(),
            },
            prefixes=self.control.prefixes(),
            streams={
                ("POST", "/v1/completions"): self._completions,
                ("POST", "/v1/chat/completions"): self._completions,
            },
            guard=self._guard,
        )

    def connection(self) -> Connection:
        """Return the protocol of a new connection."""
        return Connection(self.routes)

    def lose(self, pid: int) -> None:
        """Lose a stage; see `ControlApi.lose`."""
        self.control.lose(pid)

    def close(self) -> None:
        """Break what is open."""
        self.control.close()
        for connection in list(self.routes.connections):
            connection.close()
        self.engine.close()

    def _guard(self, request: Request) -> Response | None:
        if self._api_key is None or request.path == "/health":
            return None
        sent = request.fields.get("authorization", "")
        if hmac.compare_digest(sent.encode(), f"Bearer {self._api_key}".encode()):
            return None
        return error(401, "the bearer key is missing or wrong")

    def _completions(self, request: Request, events: EventStream) -> Response | None:
        behaviour = self.behaviour
        if behaviour.refuse_status:
            return self._refuse(behaviour.refuse_status, "the mock server refuses completions")
        if behaviour.max_streams and self.open_streams >= behaviour.max_streams:
            return self._refuse(503, f"the mock server has {self.open_streams} streams, its most", retry_after="1")
        chat = request.path.endswith("/chat/completions")
        try:
            body = msgspec.json.decode(request.body, type=_Body)
            prompt, ids = _prompt(body, chat=chat)
            tokens = body.max_completion_tokens or body.max_tokens or _DEFAULT_TOKENS
            if tokens < 1:
                raise ValueError(f"max_tokens is {tokens}: at least 1")
        except (msgspec.DecodeError, ValueError) as wrong:
            return self._refuse(400, str(wrong))
        self._requests += 1
        options = body.stream_options or _StreamOptions()
        shape = EventShape(
            response_id=f"{'chatcmpl' if chat else 'cmpl'}-{self._requests}",
            model=self._model,
            chat=chat,
            prompt_ids=ids,
            token_ids=bool(body.return_token_ids) and behaviour.send_token_ids,
            usage=options.include_usage,
            continuous_usage=options.continuous_usage_stats,
        )
        temperature = 1.0 if body.temperature is None else body.temperature
        stream = MockStream(
            script(behaviour, prompt, self._occurrence(prompt), tokens),
            TokenSource(prompt, temperature, body.seed),
            shape,
            events,
            whole=not body.stream,
            on_end=self._ended,
            times=self._record(request),
        )
        self.open_streams += 1
        self.most_streams = max(self.most_streams, self.open_streams)
        self.engine.begin(stream)
        return None

    def _occurrence(self, prompt: str) -> int:
        key = hash(prompt)  # only counts how often this process saw it: need not be the same in another
        self._occurrences[key] += 1
        return self._occurrences[key] - 1

    def _record(self, request: Request) -> Times | None:
        if self._times is None:
            return None
        name = request.fields.get("x-request-id", f"request-{self._requests}")
        times = self._times[name] = Times(now_ns())
        return times

    def _refuse(self, status: int, message: str, **fields: str) -> Response:
        self.ends["refused"] += 1
        return error(status, message, **fields)

    def _ended(self, how: str) -> None:
        self.open_streams -= 1
        self.ends[how] += 1

    async def _health(self, _: Request) -> Response:
        return Response()

    async def _models(self, _: Request) -> Response:
        owner = "vllm" if self.behaviour.send_token_ids else "mock"  # what tells a client that it may ask for token ids
        return Response({"object": "list", "data": [{"id": self._model, "object": "model", "owned_by": owner}]})

    async def _tokenize(self, request: Request) -> Response:
        body = msgspec.json.decode(request.body, type=_Body)
        _, ids = _prompt(body, chat=body.messages is not None)
        return Response({"count": len(ids), "max_model_len": 1 << 20, "tokens": ids})

    async def _truth(self, _: Request) -> Response:
        truth = self.engine.truth
        return Response(
            {
                "streams": self._requests,
                "open_streams": self.open_streams,
                "most_streams": self.most_streams,
                "ended": dict(self.ends),
                "chunks": truth.chunks,
                "tokens": truth.tokens,
                "late_ms": truth.lateness.figures(),
            }
        )

    async def _send_times(self, _: Request) -> Response:
        if self._times is None:
            return error(404, "the mock server records no times; start it with --record-times")
        return Response({name: times.content() for name, times in self._times.items()})


def _prompt(body: _Body, *, chat: bool) -> tuple[str, list[int]]:
    """Return the prompt as text and as ids."""
    if chat:
        if not body.messages:
            raise ValueError("messages: a chat needs at least one")
        prompt: str | list[int] | None = "\n".join(
            m.content if isinstance(m.content, str) else msgspec.json.encode(m.content).decode() for m in body.messages
        )
    else:
        prompt = body.prompt
    if prompt is None:
        raise ValueError("prompt: give a text or a list of token ids")
    return (prompt, list(prompt.encode())) if isinstance(prompt, str) else (str(prompt), prompt)
