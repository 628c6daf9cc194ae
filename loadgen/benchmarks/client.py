"""A streaming client for OpenAI's `/v1/completions` that keeps every token with its arrival time.

Protocol: the request asks for `stream`, for `return_token_ids` (a vLLM extension: each chunk's choice carries
`token_ids`, the first one also `prompt_token_ids`) and for the final usage chunk, whose count is an independent
check that no token got lost between server and client. The stream ends with `data: [DONE]`.

The client measures in token ids because text cannot be counted: a detokenizer holds back half characters. A server
that sends text without ids is reported as malformed, not guessed at.

No exception of the transport escapes `CompletionClient.stream`: a refused, broken, truncated or silent stream is a
`StreamRecord` with that outcome and the tokens that did arrive. Cancelling the caller's task cancels the request.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx
import msgspec

from loadgen.clock import now_ns, unix_offset_ns
from loadgen.errors import ServerError
from loadgen.records import Identity, Outcome, StreamRecord, Token
from loadgen.sse import EventDecoder

_COMPLETE = frozenset({"stop", "length"})  # any other finish_reason means that the server gave up the request
_CONNECT_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class StreamRequest:
    """What to ask for.

    Attributes:
        name: The caller's name for the stream, copied into its record.
        prompt: Text to complete.
        max_tokens: Number of tokens to generate; reached exactly when `ignore_eos`.
        temperature: 0 for greedy decoding.
        seed: Seed of the request's own generator; needed for reproducible sampling.
        ignore_eos: Keep generating past an end-of-sequence token (a vLLM extension).
    """

    name: str
    prompt: str
    max_tokens: int
    temperature: float = 0.0
    seed: int | None = None
    ignore_eos: bool = True

    def body(self, model: str) -> dict[str, Any]:
        """Return the JSON body of the request for the model the server calls `model`."""
        body: dict[str, Any] = {
            "model": model,
            "prompt": self.prompt,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "ignore_eos": self.ignore_eos,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
        }
        return body if self.seed is None else body | {"seed": self.seed}


class _Choice(msgspec.Struct):
    text: str
    finish_reason: str | None = None
    prompt_token_ids: list[int] | None = None
    token_ids: list[int] | None = None


class _Usage(msgspec.Struct):
    completion_tokens: int


class _Chunk(msgspec.Struct):
    id: str
    created: int
    model: str
    choices: list[_Choice]
    usage: _Usage | None = None


class _Error(msgspec.Struct):
    message: str


class _ErrorEvent(msgspec.Struct):
    error: _Error


class _Stream:
    """What has arrived of one stream so far."""

    def __init__(self, on_tokens: Callable[[int], None] | None) -> None:
        self.on_tokens = on_tokens
        self.tokens: list[Token] = []
        self.prompt_token_ids: tuple[int, ...] = ()
        self.identities: dict[Identity, None] = {}
        self.chunks = 0
        self.finish_reason: str | None = None
        self.reported_tokens: int | None = None
        self.done = False

    def take(self, event: str, arrived_ns: int) -> None:
        """Take in one event.

        Raises:
            msgspec.DecodeError: the event is not a chunk with token ids.
            ServerError: it is an error event.
        """
        if event == "[DONE]":
            self.done = True
            return
        try:
            chunk = msgspec.json.decode(event, type=_Chunk)
        except msgspec.ValidationError:
            error = _error_message(event)
            if error is None:
                raise
            raise ServerError(error) from None
        self.identities.setdefault(Identity(chunk.id, chunk.created, chunk.model))
        if chunk.usage is not None:
            self.reported_tokens = chunk.usage.completion_tokens
        if chunk.choices:
            self._take_choice(chunk.choices[0], arrived_ns)
        self.chunks += 1

    def _take_choice(self, choice: _Choice, arrived_ns: int) -> None:
        ids = choice.token_ids
        if ids is None:
            raise msgspec.ValidationError("a chunk without token_ids: does the server know return_token_ids?")
        if choice.prompt_token_ids is not None:
            self.prompt_token_ids = tuple(choice.prompt_token_ids)
        for position, token_id in enumerate(ids, start=1):
            text = choice.text if position == len(ids) else ""
            self.tokens.append(Token(token_id, text, arrived_ns, self.chunks))
        self.finish_reason = choice.finish_reason or self.finish_reason
        if ids and self.on_tokens is not None:
            self.on_tokens(len(ids))

    def judge(self) -> tuple[Outcome, str | None]:
        """Say how a stream that the server closed in good order ended."""
        if not self.tokens:
            return Outcome.EMPTY, f"the stream ended without a token (finish_reason {self.finish_reason!r})"
        if self.finish_reason not in _COMPLETE:
            return Outcome.TRUNCATED, f"ended after {len(self.tokens)} tokens with {self.finish_reason!r}"
        if not self.done:
            return Outcome.TRUNCATED, "the stream was closed before [DONE]"
        return Outcome.FINISHED, None


class CompletionClient:
    """Streams completions from one server.

    Args:
        base_url: For example "http://127.0.0.1:8000".
        model: The model name that the server answers to; see `served_model`.
        silence_s: Seconds without a byte after which a stream counts as timed out.
        transport: Replaces the network, for tests.

    Proxies from the environment are ignored: a proxy would batch tokens and falsify their arrival times.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        silence_s: float = 300.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._model = model
        self._http = httpx.AsyncClient(
            base_url=base_url,
            timeout=httpx.Timeout(silence_s, connect=_CONNECT_TIMEOUT_S),
            limits=httpx.Limits(max_connections=None),
            headers={"Accept-Encoding": "identity"},
            trust_env=False,
            transport=transport,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def stream(self, request: StreamRequest, *, on_tokens: Callable[[int], None] | None = None) -> StreamRecord:
        """Run one stream to its end and return what was seen; `on_tokens(count)` is called as tokens arrive."""
        stream = _Stream(on_tokens)
        offset, started = unix_offset_ns(), now_ns()
        try:
            outcome, detail = await self._read(request, stream)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            outcome, detail = Outcome.UNREACHABLE, str(error)
        except httpx.TimeoutException as error:
            outcome, detail = Outcome.TIMED_OUT, f"no byte for too long: {type(error).__name__}"
        except httpx.TransportError as error:
            outcome, detail = Outcome.DISCONNECTED, str(error) or type(error).__name__
        except ServerError as error:
            outcome, detail = Outcome.ERROR, str(error)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            outcome, detail = Outcome.MALFORMED, f"event {stream.chunks}: {error}"
        return StreamRecord(
            name=request.name,
            started_ns=started,
            ended_ns=now_ns(),
            unix_offset_ns=offset,
            tokens=tuple(stream.tokens),
            prompt_token_ids=stream.prompt_token_ids,
            identities=tuple(stream.identities),
            outcome=outcome,
            finish_reason=stream.finish_reason,
            reported_tokens=stream.reported_tokens,
            detail=detail,
        )

    async def _read(self, request: StreamRequest, stream: _Stream) -> tuple[Outcome, str | None]:
        decoder = EventDecoder()
        async with self._http.stream("POST", "/v1/completions", json=request.body(self._model)) as response:
            if response.status_code != httpx.codes.OK:
                body = (await response.aread()).decode(errors="replace")
                return Outcome.REFUSED, f"HTTP {response.status_code}: {_error_message(body) or body[:200]}"
            async for read in response.aiter_raw():
                arrived = now_ns()
                for event in decoder.feed(read):
                    stream.take(event, arrived)
                if stream.done:
                    break
        return stream.judge()


def _error_message(body: str) -> str | None:
    try:
        return msgspec.json.decode(body, type=_ErrorEvent).error.message
    except msgspec.DecodeError:
        return None


async def served_model(base_url: str) -> str:
    """Return the name of the first model that the server at `base_url` lists.

    Raises:
        ServerError: it cannot be asked, or lists none.
    """
    try:
        async with httpx.AsyncClient(base_url=base_url, trust_env=False) as http:
            response = await http.get("/v1/models")
            response.raise_for_status()
            name: str = response.json()["data"][0]["id"]
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        raise ServerError(f"{base_url}/v1/models does not name a model: {error!r}") from error
    return name
