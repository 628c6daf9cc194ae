"""The server under load, and what one request to it looks like on the wire."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from loadgen.errors import OptionsError
from loadgen.workloads.plan import PlannedRequest, Prompt

Endpoint = Literal["completions", "chat"]
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Target:
    """An OpenAI-compatible server.

    Attributes:
        base_url: Where it is, for example "http://127.0.0.1:8000"; a path in it comes before `/v1/...`.
        model: The model to ask for; None for the first that the server lists.
        endpoint: Which of the two streaming endpoints.
        token_ids: Whether to ask for token ids (`return_token_ids`, a vLLM extension): `on` requires them of every
            chunk, `auto` asks for them if the server says that it is vLLM.
        continuous_usage: Ask for the usage so far in every chunk (`continuous_usage_stats`, a vLLM extension), which
            counts the tokens of a chunk where there are no ids.
        ignore_eos: Ask the server to generate exactly `max_tokens` (a vLLM extension).
        temperature: 0 for greedy decoding.
        api_key_env: Name of the environment variable with the bearer key; the key itself is in no setting.
        extra_body: Further fields of every request's body; they win over those made here.
    """

    base_url: str
    model: str | None = None
    endpoint: Endpoint = "completions"
    token_ids: Literal["auto", "on", "off"] = "auto"  # noqa: S105 - tokens of text
    continuous_usage: bool = False
    ignore_eos: bool = False
    temperature: float = 0.0
    api_key_env: str | None = None
    extra_body: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Address:
    """A base URL, taken apart."""

    host: str
    port: int
    tls: bool
    path: str

    @property
    def authority(self) -> str:
        """The value of the header field Host."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS["https" if self.tls else "http"] else f"{host}:{self.port}"


def read_address(base_url: str) -> Address:
    """Take a base URL apart.

    Raises:
        OptionsError: it is not a URL of an HTTP server, or holds a user or password.
    """
    try:
        parts = urlsplit(base_url)
        port = parts.port
    except ValueError as wrong:
        raise OptionsError(f"target URL {base_url!r}: {wrong}") from None
    if parts.username is not None or parts.password is not None:
        raise OptionsError("target URL: it holds a user or password; give the key by an environment variable")
    if parts.scheme not in _PORTS or not parts.hostname:
        raise OptionsError(f"target URL {base_url!r}: give http://HOST[:PORT] or https://HOST[:PORT]")
    if parts.query or parts.fragment:
        raise OptionsError(f"target URL {base_url!r}: a base URL has neither ? nor #")
    path = parts.path.rstrip("/").removesuffix("/v1")
    return Address(parts.hostname, port or _PORTS[parts.scheme], parts.scheme == "https", path)


@dataclass(frozen=True, slots=True)
class Limits:
    """Where the client stops waiting, and how much it does at once.

    Attributes:
        max_in_flight: Streams at a time; what is due beyond them waits (and counts as waiting since it was due).
        connect_s: Seconds for a connection to be made.
        silence_s: Seconds without a byte after which a stream counts as timed out.
        total_s: Seconds after which a stream counts as timed out, whatever comes; None: no limit.
        grace_s: Seconds that streams may go on after the time at which no further request begins.
        retries: How often a request is sent again that broke before its first token.
    """

    max_in_flight: int = 10_000
    connect_s: float = 5.0
    silence_s: float = 300.0
    total_s: float | None = None
    grace_s: float = 30.0
    retries: int = 0

    def __post_init__(self) -> None:
        for name in ("max_in_flight", "connect_s", "silence_s"):
            if not getattr(self, name) > 0:
                raise OptionsError(f"{name} is {getattr(self, name)}: it must be above 0")
        if self.total_s is not None and not self.total_s > 0:
            raise OptionsError(f"total_s is {self.total_s}: it must be above 0; leave it out for no limit")
        if self.grace_s < 0 or self.retries < 0:
            raise OptionsError(f"grace_s is {self.grace_s}, retries is {self.retries}: neither may be below 0")


class RequestWriter:
    """Turns planned requests into the bytes of HTTP requests for one target.

    Args:
        target: The server.
        model: The model's name, as the server knows it.
        token_ids: Whether to ask for token ids.
        run_id: Begins the X-Request-Id of every request, by which a server's log can be matched with the results.

    Raises:
        OptionsError: the key's environment variable is not set.
    """

    def __init__(self, target: Target, model: str, *, token_ids: bool, run_id: str) -> None:
        address = read_address(target.base_url)
        chat = target.endpoint == "chat"
        self._target = target
        self._run_id = run_id
        options: dict[str, Any] = {"include_usage": True}
        if target.continuous_usage:
            options["continuous_usage_stats"] = True
        self._body: dict[str, Any] = {
            "model": model,
            "temperature": target.temperature,
            "stream": True,
            "stream_options": options,
            **({"ignore_eos": True} if target.ignore_eos else {}),
            **({"return_token_ids": True} if token_ids else {}),
        }
        self._head = (
            f"POST {address.path}/v1/{'chat/completions' if chat else 'completions'} HTTP/1.1\r\n"
            f"host: {address.authority}\r\n"
            "content-type: application/json\r\n"
            "accept: text/event-stream\r\n"
            "accept-encoding: identity\r\n"
            "user-agent: midstream-load\r\n"
            f"{authorization(target)}"
        ).encode()

    def request_id(self, index: int, attempt: int = 0) -> str:
        """Return the X-Request-Id of one attempt of a request."""
        return f"{self._run_id}-{index}" + (f"-{attempt}" if attempt else "")

    def write(self, planned: PlannedRequest, attempt: int) -> bytes:
        """Return one request, head and body.

        Raises:
            OptionsError: the prompt does not fit the endpoint.
        """
        body = (
            self._body
            | {"max_tokens": planned.max_tokens}
            | self._prompt(planned.prompt)
            | dict(self._target.extra_body)
        )
        encoded = msgspec.json.encode(body)
        return b"%bx-request-id: %b\r\ncontent-length: %d\r\n\r\n%b" % (
            self._head,
            self.request_id(planned.index, attempt).encode(),
            len(encoded),
            encoded,
        )

    def _prompt(self, prompt: Prompt) -> dict[str, Any]:
        if self._target.endpoint == "chat":
            if prompt.text is None:
                raise OptionsError("a prompt of token ids alone cannot be sent to chat completions: use completions")
            return {"messages": [{"role": "user", "content": prompt.text}]}
        if prompt.token_ids is not None:
            return {"prompt": prompt.token_ids}
        return {"prompt": prompt.text}


def authorization(target: Target) -> str:
    """Return the header field with the key, as a line with its end; empty if the target needs none.

    Raises:
        OptionsError: the environment variable is not set, or its value cannot be a header field.
    """
    if target.api_key_env is None:
        return ""
    key = os.environ.get(target.api_key_env, "")
    if not key or not key.isascii() or not key.isprintable():
        raise OptionsError(f"the environment variable {target.api_key_env} holds no key (not set, or not printable)")
    return f"authorization: Bearer {key}\r\n"
