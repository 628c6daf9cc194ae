"""The voice of a head: tells a sink what happened, at least once and in order, and never holds up who tells it.

The sink is an HTTP address for CloudEvents: a broker's ingress, or whatever Knative's SinkBinding names in ``K_SINK``.
Events wait in a bounded queue for one thread, which posts them one after the other in the binary mode. What the sink
does not take for the moment (no connection, a time-out, 408, 425, 429, 5xx) is posted again after a growing pause with
jitter, or the seconds that the sink asks for in ``Retry-After``; the events behind it wait, so that the order stays.
What the sink refuses otherwise is dropped.

The promise ends with the queue and the process: when the sink is away for long, the oldest events give way to newer
ones, and what is older than `Limits.give_up_s` is not tried again; what waits when the process dies is lost. Whatever
is dropped is counted and logged. A time-out can hide that the sink took an event: it then comes twice, with one id.
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
import json
import logging
import math
import random
import re
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import httpx

from runtime.events import catalogue
from runtime.events.attributes import read_extensions
from runtime.events.catalogue import Type
from runtime.events.envelope import Event, EventError
from runtime.events.from_journal import from_journal
from runtime.head.access import TOKEN_VARIABLE, is_loopback

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from runtime.migration.journal import Entry

SINK_VARIABLE: Final = "K_SINK"
OVERRIDES_VARIABLE: Final = "K_CE_OVERRIDES"
_TRY_AGAIN = frozenset({408, 425, 429})
_LAST_PORT = 65535
_SECONDS = re.compile(r"[0-9]{1,6}")

logger = logging.getLogger(__name__)


class PublisherError(ValueError):
    """The publisher cannot be set up; the message says which setting is wrong."""


class Fate(enum.StrEnum):
    """What became of an event that was to be published."""

    DELIVERED = "delivered"
    REFUSED = "refused"  # by the sink
    CROWDED_OUT = "crowded_out"  # by newer ones, while the sink was away
    GIVEN_UP = "given_up"  # it was too old
    CLOSED = "closed"  # it came after the end, or waited then


@dataclass(frozen=True, slots=True)
class Limits:
    """How much and how long a publisher keeps and tries."""

    queue: int = 1000
    """Events that wait at most."""
    timeout_s: float = 5.0
    """Seconds that connecting, sending and each read of the answer may take."""
    first_pause_s: float = 0.2
    """Mean seconds before the second try; doubled for each further one."""
    longest_pause_s: float = 15.0
    give_up_s: float = 600.0
    """Age in seconds beyond which an event is not tried again."""


class Publisher:
    """Publishes events to a sink. Thread-safe.

    Args:
        sink: where to, ``http://`` or ``https://``.
        pipeline: the name of the pipeline whose head this is.
        boot: the id of this start of the head.
        overrides: extensions that every event gets, in place of its own of the same name.
        token: of the control API, which a broker on this machine asks for too; no other sink gets it.
        limits: see there.
        clock: monotonic seconds.

    Raises:
        PublisherError: one of them cannot be used.

    """

    def __init__(
        self,
        sink: str,
        pipeline: str,
        boot: str,
        *,
        overrides: Mapping[str, str] | None = None,
        token: str | None = None,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        _check_sink(sink)
        problem = catalogue.problem(Type.STAGE_RELEASE, {"pipeline": pipeline, "stage": 0})
        if problem is not None:
            raise PublisherError(f"no event can be about this pipeline: {problem.message}")
        self._sink = sink
        self._pipeline = pipeline
        self._boot = boot
        self._overrides = _check_overrides(overrides or {})
        self._token = token if is_loopback(httpx.URL(sink).host) else None
        self._limits = limits or Limits()
        self._clock = clock
        self._changed = threading.Condition()
        self._queue: deque[tuple[float, Event]] = deque()
        self._fates: Counter[Fate] = Counter()
        self._closed = False
        self._deadline: float | None = None
        self._thread = threading.Thread(target=self._run, name="event-publisher", daemon=True)
        self._thread.start()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], pipeline: str, boot: str) -> Publisher | None:
        """Return a publisher to what ``K_SINK`` and ``K_CE_OVERRIDES`` say; None without a sink.

        Raises:
            PublisherError: one of them cannot be used.

        """
        sink = environment.get(SINK_VARIABLE)
        if not sink:
            return None
        overrides, token = _read_overrides(environment.get(OVERRIDES_VARIABLE)), environment.get(TOKEN_VARIABLE)
        return cls(sink, pipeline, boot, overrides=overrides, token=token or None)

    @property
    def fates(self) -> dict[Fate, int]:
        """How many events had which fate so far."""
        with self._changed:
            return {fate: self._fates[fate] for fate in Fate}

    def told(self, entry: Entry) -> None:
        """Publish what an entry of the journal tells, if it tells of an event; see `Journal.listen`.

        Raises:
            EventError: the entry's details are not what the event needs.

        """
        event = from_journal(entry, self._pipeline, self._boot)
        if event is not None:
            self.publish(event)

    def publish(self, event: Event) -> None:
        """Let an event be posted; returns at once and raises nothing."""
        with self._changed:
            if self._closed:
                self._drop(event, Fate.CLOSED)
                return
            while len(self._queue) >= self._limits.queue:
                self._drop(self._queue.popleft()[1], Fate.CROWDED_OUT)
            self._queue.append((self._clock(), event))
            self._changed.notify_all()

    def close(self, within_s: float = 2.0) -> None:
        """Post what waits as far as that can be done in time; take nothing more. Never takes longer.

        What the sink does not take at the first try is not tried again.
        """
        with self._changed:
            if not self._closed:
                self._closed, self._deadline = True, time.monotonic() + within_s
                self._changed.notify_all()
        self._thread.join(within_s)
        with self._changed:
            while self._queue:
                self._drop(self._queue.popleft()[1], Fate.CLOSED)

    # -- the publisher's thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        with httpx.Client(trust_env=not is_loopback(httpx.URL(self._sink).host)) as client:
            while (taken := self._take()) is not None:
                self._deliver(client, *taken)

    def _take(self) -> tuple[float, Event] | None:
        """Wait for the next event; None when no more is to be posted."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            if not self._queue or self._time_left() <= 0:
                return None
            return self._queue.popleft()

    def _deliver(self, client: httpx.Client, at: float, event: Event) -> None:
        """Post an event until its fate is known."""
        pause_s = self._limits.first_pause_s
        for attempt in itertools.count():
            try:
                self._post(client, event)
            except _NotTaken as error:
                if error.for_good:
                    fate = Fate.REFUSED
                elif self._closed:
                    fate = Fate.CLOSED
                elif self._clock() - at > self._limits.give_up_s:
                    fate = Fate.GIVEN_UP
                else:
                    if attempt == 0:
                        logger.warning("%s does not take events for now (%s); trying again", self._sink, error)
                    # Jitter, so that several heads do not come back all at once.
                    self._wait(error.retry_after_s or pause_s * random.uniform(0.5, 1.5))  # noqa: S311
                    pause_s = min(2 * pause_s, self._limits.longest_pause_s)
                    continue
                with self._changed:
                    self._drop(event, fate, str(error))
                return
            with self._changed:
                self._fates[Fate.DELIVERED] += 1
            if attempt:
                logger.warning("%s takes events again", self._sink)
            return

    def _post(self, client: httpx.Client, event: Event) -> None:
        """Post an event once; raises _NotTaken."""
        if self._overrides:
            event = dataclasses.replace(event, extensions={**event.extensions, **self._overrides})
        headers, body = event.to_http_binary()
        if self._token:
            headers = {**headers, "authorization": f"Bearer {self._token}"}
        timeout_s = max(0.01, min(self._limits.timeout_s, self._time_left()))
        try:
            # What the sink answers beyond its status is not read.
            with client.stream("POST", self._sink, content=body, headers=headers, timeout=timeout_s) as response:
                status, asked = response.status_code, response.headers.get("retry-after", "")
        except httpx.HTTPError as error:
            raise _NotTaken(str(error) or type(error).__name__) from error
        except Exception as error:  # this thread must outlive whatever an event or a sink does
            logger.exception("the event %s cannot be posted", event.key)
            raise _NotTaken(str(error), for_good=True) from error
        if 200 <= status < 300:
            return
        retry_after_s = min(float(asked), self._limits.give_up_s) if _SECONDS.fullmatch(asked) else None
        raise _NotTaken(
            f"HTTP {status}", for_good=status < 500 and status not in _TRY_AGAIN, retry_after_s=retry_after_s
        )

    def _wait(self, pause_s: float) -> None:
        """Wait, but not for longer than until the end begins."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed, pause_s)

    def _time_left(self) -> float:
        """Seconds that closing leaves for posting."""
        return math.inf if self._deadline is None else self._deadline - time.monotonic()

    def _drop(self, event: Event, fate: Fate, reason: str = "") -> None:
        """Count and log an event that is not delivered. Called with the lock held."""
        self._fates[fate] += 1
        logger.warning("event %s (%s) is not published: %s %s", event.key, event.type, fate, reason)


class _NotTaken(Exception):
    """The sink did not take an event, for the moment or for good."""

    def __init__(self, reason: str, *, for_good: bool = False, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.for_good = for_good
        self.retry_after_s = retry_after_s


def _check_sink(sink: str) -> None:
    shown = "the sink" if "@" in sink else f"the sink {sink!r}"  # there may be a password in it
    try:
        url = httpx.URL(sink)
    except httpx.InvalidURL as error:
        raise PublisherError(f"{shown} is no address such as http://127.0.0.1:8080: {error}") from None
    if url.userinfo:
        raise PublisherError("the sink's address has a user name or a password in it; events are sent without")
    if url.scheme not in {"http", "https"} or not url.host or (url.port or 1) > _LAST_PORT:
        raise PublisherError(f"{shown} is no address such as http://127.0.0.1:8080")


def _read_overrides(text: str | None) -> dict[str, Any]:
    """Return the extensions of ``K_CE_OVERRIDES``, such as ``{"extensions": {"team": "blue"}}``."""
    if not text:
        return {}
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PublisherError(f"{OVERRIDES_VARIABLE} is no JSON: {error}") from error
    extensions = document.get("extensions") or {} if isinstance(document, dict) else None
    if not isinstance(extensions, dict):
        raise PublisherError(f'{OVERRIDES_VARIABLE} must be such as {{"extensions": {{"team": "blue"}}}}')
    return extensions


def _check_overrides(extensions: Mapping[str, Any]) -> dict[str, str]:
    try:
        checked = read_extensions(extensions)
    except EventError as error:
        raise PublisherError(f"an event cannot have these extensions: {error}") from error
    reserved = sorted(set(extensions) - set(checked))
    if reserved:
        raise PublisherError(f"{', '.join(reserved)} cannot be overridden: only extensions can")
    return checked
