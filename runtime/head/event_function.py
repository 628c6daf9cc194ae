"""What a function does whatever it is for: read events, work off the loop, answer, and end when it is told to.

func-python decodes the request and calls `handle`; what a function does with an event (`EventFunction.answer`) talks to
the head and takes as long as a change takes. func-python's server stops in this order: no new connections, then the
requests in flight (from Python 3.12 on it waits for them, however long they take; before, it cancels them after 3 s),
then `stop`. So that `stop` gets its time, a function hears of SIGTERM itself and tells everybody who waits to try
again. Nothing is lost by that: events come at least once, and the head knows what it was asked for already.

Work runs on daemon threads, because a thread of the loop's own pool would keep the process until the head answers.

Answers are an event, or an error body as OpenAI's API has it: 400 or 422 for an event that is wrong, which a broker
does not send again; 503 with ``Retry-After`` for one that it shall send again; 502 when the head said what makes no
sense here. An event that is for another instance of the function is answered with 204: a broker tells them all.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import logging
import math
import signal
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from runtime.events.envelope import Event, EventError, InvalidData, UnknownType, read_cloudevent
from runtime.head.control_client import ControlClient, ControlError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping

    from runtime.events.catalogue import Type

_T = TypeVar("_T")
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_log = logging.getLogger(__name__)

# Below the 300 s after which Knative cuts a request: the sender gets an answer, and asks again.
LONGEST_ANSWER_S = 240.0
DEFAULT_ENDPOINT = "http://127.0.0.1:8000"


class SettingsError(ValueError):
    """The environment does not say what the function needs; the message names the variable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What every function is told: its pipeline, and where the head of that is."""

    pipeline: str
    endpoint: str = DEFAULT_ENDPOINT


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Return what the environment says.

    Raises:
        SettingsError: something is missing or makes no sense.

    """
    pipeline = environment.get("MIDSTREAM_PIPELINE")
    if not pipeline:
        raise SettingsError("MIDSTREAM_PIPELINE is not set; it names the pipeline that this function acts for")
    endpoint = environment.get("MIDSTREAM_ENDPOINT") or DEFAULT_ENDPOINT
    try:
        with ControlClient(endpoint):
            pass
    except ControlError as error:
        raise SettingsError(f"MIDSTREAM_ENDPOINT: {error}") from error
    return Settings(pipeline=pipeline, endpoint=endpoint)


class TryAgain(Exception):
    """The event is fine and was not carried out (or not to its end); the broker shall send it again."""

    def __init__(self, message: str, kind: str = "try_again", after_s: float = 1.0) -> None:
        super().__init__(message)
        self.kind = kind
        self.after_s = after_s

    @classmethod
    def because(cls, error: ControlError) -> TryAgain:
        """Tell what the head, or the way to it, said."""
        if error.refused:
            return cls(f"the head refused for now: {error}", error.kind or "refused")
        return cls(str(error), error.kind or "head_unreachable", after_s=2.0)


class Refused(EventError):
    """The head understood and refused for good; nothing changed."""

    code = 422

    def __init__(self, error: ControlError) -> None:
        super().__init__(str(error))
        self.kind = error.kind or "refused"


class SenselessAnswer(Exception):
    """The head said what cannot be told on."""


@contextlib.contextmanager
def making_sense() -> Iterator[None]:
    """Around whatever makes an event of the head's answer, so that its faults are not taken for the sender's."""
    try:
        yield
    except (EventError, AttributeError, KeyError, TypeError, ValueError, msgspec.ValidationError) as error:
        raise SenselessAnswer(f"the head's answer makes no sense: {error!r}") from error


class EventFunction(abc.ABC):
    """One function under func-python.

    Args:
        pipeline: the only pipeline that it acts for.
        takes: the types of events that it takes.
        longest_s: seconds after which whoever waits for an answer is told to try again; the work goes on.

    """

    def __init__(self, pipeline: str, takes: Collection[Type], longest_s: float = LONGEST_ANSWER_S) -> None:
        self._pipeline = pipeline
        self._takes = takes
        self._longest_s = longest_s
        self._waiting: set[asyncio.Future[Any]] = set()
        self._heard = False
        self.ending = threading.Event()

    def concerns(self, event: Event) -> bool:  # noqa: ARG002 - most functions take every event of their types
        """Whether an event is for this instance."""
        return True

    @abc.abstractmethod
    def answer(self, event: Event) -> Event:
        """Carry out an event and return the one that tells of it. Blocks; runs on a thread of its own.

        Raises:
            TryAgain: the broker shall send it again.
            Refused: it was understood and refused for good; nothing changed.
            SenselessAnswer: of the head.

        """

    async def handle(
        self,
        scope: Mapping[str, Any],
        receive: Callable[[], Awaitable[Any]],  # noqa: ARG002 - func-python's signature
        send: Any,
    ) -> None:
        """Answer one event."""
        try:
            event = self._read(scope)
            if not self.concerns(event):
                await _send_nothing(send)
                return
            answer = await self._work(lambda: self.answer(event))
        except EventError as error:
            _log.warning("event refused: %s", error)
            await _send_error(send, error.code, error.as_error_body())
        except TryAgain as error:
            _log.info("event not carried out: %s", error)
            await _send_error(send, 503, _error_body(str(error), error.kind, 503), error.after_s)
        except SenselessAnswer as error:
            _log.exception("the head's answer makes no sense")
            await _send_error(send, 502, _error_body(str(error), "bad_head_answer", 502))
        else:
            traced = replace(answer, traceparent=event.traceparent, tracestate=event.tracestate)
            await send(traced.to_cloudevent())

    def start(self, cfg: Mapping[str, str]) -> None:  # noqa: ARG002 - func-python's signature; `new` has read it
        """Begin; func-python calls this on its loop before the first request."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            _hear(number, loop, self.end)

    def stop(self) -> None:
        """Let go of what is held; func-python calls this last."""
        self.end()

    def end(self) -> None:
        """Tell whoever waits to try again, and take no more events. On the loop's thread."""
        self.ending.set()
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_exception(TryAgain("this function is ending", "ending"))

    def alive(self) -> tuple[bool, str]:
        """Whether this process can go on; says nothing about the head."""
        return True, "alive"

    @abc.abstractmethod
    def ready(self) -> tuple[bool, str]:
        """Whether events can be carried out now."""

    def _read(self, scope: Mapping[str, Any]) -> Event:
        event = read_cloudevent(scope["event"])
        if event.type not in self._takes:
            taken = ", ".join(self._takes)
            raise UnknownType(f"{event.type} is not for this function, which takes {taken}", "type")
        if event.data["pipeline"] != self._pipeline:
            raise InvalidData(
                f"the event is for the pipeline {event.data['pipeline']!r}, but this function acts for "
                f"{self._pipeline!r}",
                "data.pipeline",
            )
        return event

    async def _work(self, work: Callable[[], _T]) -> _T:
        """Run blocking work on a daemon thread."""
        if self.ending.is_set():
            raise TryAgain("this function is ending", "ending")
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[_T] = loop.create_future()

        def settle(how: Callable[[Any], None], value: object) -> None:
            if not outcome.done():
                how(value)

        def run() -> None:
            how: Callable[[Any], None] = outcome.set_result
            value: object
            try:
                value = work()
            except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
                how, value = outcome.set_exception, error
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(settle, how, value)

        self._waiting.add(outcome)
        threading.Thread(target=run, name="event", daemon=True).start()
        try:
            return await asyncio.wait_for(outcome, self._longest_s)
        except TimeoutError as error:
            raise TryAgain(f"no end within {self._longest_s:g} s; it goes on", "late") from error
        finally:
            self._waiting.discard(outcome)


def _hear(number: signal.Signals, loop: asyncio.AbstractEventLoop, then: Callable[[], None]) -> None:
    """Call `then` on the loop when a signal comes, beside what the server does about it.

    The loop learns of signals through its wake-up descriptor, whatever handler is set, so the server's stays in force.
    """
    before = signal.getsignal(number)

    def heard(*signalled: Any) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(then)
        if callable(before):
            before(*signalled)

    signal.signal(number, heard)


def _error_body(message: str, kind: str, code: int) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


async def _send_nothing(send: Any) -> None:
    await send.http({"type": "http.response.start", "status": 204, "headers": []})
    await send.http({"type": "http.response.body", "body": b""})


async def _send_error(send: Any, code: int, body: dict[str, Any], retry_after_s: float | None = None) -> None:
    headers = [(b"content-type", b"application/json")]
    if retry_after_s is not None:
        headers.append((b"retry-after", str(math.ceil(retry_after_s)).encode()))
    await send.http({"type": "http.response.start", "status": code, "headers": headers})
    await send.http({"type": "http.response.body", "body": msgspec.json.encode(body)})
