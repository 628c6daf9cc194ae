"""One attempt to hand an event over, and what its answer means.

Which answers are tried again is Knative's rule (``SelectiveRetry`` of knative/eventing): no answer at all, 404, 408,
409, 429 and 5xx; other 4xx and 3xx are final. A failure to connect, to answer in time or to answer in HTTP counts as
500 with a text that begins with ``dispatch error``, as there. ``Retry-After`` is heard on 429 and 503.
"""

from __future__ import annotations

import asyncio
import base64
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Protocol

import httpx

from controller.platform.broker.wire import Event, MalformedEvent, has_event, read

_RETRIED = frozenset({404, 408, 409, 429})
_ERROR_DATA_CHARACTERS = 1024  # of base64, as Knative cuts it


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of an attempt: HTTP status, body, the time to wait that was asked for, and the event in it if any."""

    status: int
    body: bytes = b""
    retry_after_s: float = 0.0
    reply: Event | None = None
    malformed: bool = False

    @property
    def good(self) -> bool:
        """Whether the event was taken."""
        return 200 <= self.status < 300

    @property
    def retried(self) -> bool:
        """Whether trying again may help."""
        return self.status >= 500 or self.status in _RETRIED

    @property
    def ignored(self) -> bool:
        """Whether it carries something that is no event."""
        return self.good and self.status != 202 and self.reply is None and bool(self.body)

    @property
    def said(self) -> str:
        """The body for a log line."""
        return self.body[:_ERROR_DATA_CHARACTERS].decode("utf-8", "replace")

    def error_extensions(self, destination: str) -> dict[str, str]:
        """Return the extensions that a dead letter carries."""
        data = base64.b64encode(self.body).decode()[:_ERROR_DATA_CHARACTERS]
        extensions = {"knativeerrordest": destination, "knativeerrorcode": str(self.status)}
        return {**extensions, "knativeerrordata": data} if data else extensions


class Send(Protocol):
    """Makes one attempt; never raises."""

    async def __call__(
        self, url: str, event: Event, *, structured: bool, timeout_s: float, prefer_reply: bool
    ) -> Answer:
        """Send an event and return the answer."""
        ...


class HttpSender:
    """Sends over HTTP; answers longer than `most_bytes` are failures."""

    def __init__(self, http: httpx.AsyncClient, most_bytes: int) -> None:
        self._http = http
        self._most_bytes = most_bytes

    async def __call__(
        self, url: str, event: Event, *, structured: bool, timeout_s: float, prefer_reply: bool
    ) -> Answer:
        """Send an event and return the answer."""
        headers, body = event.to_structured() if structured else event.to_binary()
        if prefer_reply:
            headers["prefer"] = "reply"
        try:
            async with asyncio.timeout(timeout_s):
                async with self._http.stream("POST", url, headers=headers, content=body) as response:
                    body = await self._read(response)
                    return answer(response.status_code, response.headers, body, may_reply=prefer_reply)
        except TimeoutError:
            return Answer(500, f"dispatch error: no answer from {url} within {timeout_s:g} s".encode())
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            return Answer(500, f"dispatch error: {url}: {error or type(error).__name__}".encode())

    async def _read(self, response: httpx.Response) -> bytes:
        body = b""
        async for part in response.aiter_bytes():
            body += part
            if len(body) > self._most_bytes:
                raise ValueError(f"the answer has more than {self._most_bytes} bytes")
        return body


def answer(status: int, headers: httpx.Headers, body: bytes, *, may_reply: bool) -> Answer:
    """Say what a response means. An event that cannot be read is a bad gateway, as in Knative's broker."""
    asked = retry_after_s(headers.get("retry-after", ""), datetime.now(UTC)) if status in {429, 503} else 0.0
    is_reply = may_reply and 200 <= status < 300 and status != 202  # 202: never a reply, says Knative's specification
    if not is_reply or not has_event(headers):
        return Answer(status, body, asked)
    try:
        return Answer(status, body, reply=read(headers.multi_items(), body))
    except MalformedEvent as error:
        return Answer(502, f"the answer is no valid event: {error}".encode(), malformed=True)


def retry_after_s(text: str, now: datetime) -> float:
    """Return the seconds that a ``Retry-After`` header asks for: a number, or a date; 0 if it is neither."""
    if re.fullmatch("[0-9]{1,18}", text):
        return float(text)
    try:
        at = parsedate_to_datetime(text)
        return max((at - now).total_seconds(), 0.0) if at.tzinfo else 0.0
    except (ValueError, OverflowError):
        return 0.0
