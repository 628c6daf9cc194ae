"""The broker: takes an event for all triggers that want it, or for none.

At least once: an event that was accepted is delivered until its subscriber takes it or its retries are used up, and may
be delivered twice (an answer can get lost). Events that a sender gives twice, with the same ``source`` and ``id``, are
delivered twice: as in Knative nothing is recognised as a duplicate here, and whoever handles events must.

State is in memory only, as in Knative's in-memory channel. When a broker dies, what it had accepted and not delivered
is lost, with the ring of recent events and every trigger that was put while it ran. For Midstream nothing breaks: a
request for a change that is lost has changed nothing and can be sent again (its sender sees no answer), and what a head
tells is also in its status and its story. Whoever counts on events as a record needs a broker with a store.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from controller.platform.broker.delivery import HOPS, Item, TriggerQueue
from controller.platform.broker.metrics import Metrics
from controller.platform.broker.ring import Ring, Undelivered
from controller.platform.broker.sending import Answer

if TYPE_CHECKING:
    from controller.platform.broker.sending import Send
    from controller.platform.broker.trigger import Trigger
    from controller.platform.broker.wire import Event

_RETRY_AFTER_S = 1.0
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a broker holds at most.

    Attributes:
        event_bytes: size of a request or an answer.
        queued_events: events that wait for each trigger.
        requests: requests to each trigger's subscriber under way at once.
        ring_events, ring_bytes: what the ring of recent events holds.
        hops: how often an event may be answered by an event, and that again (Knative: 255).

    """

    event_bytes: int = 256 * 1024
    queued_events: int = 512
    requests: int = 16
    ring_events: int = 1000
    ring_bytes: int = 16 << 20
    hops: int = 255


class PublishError(RuntimeError):
    """An event was not accepted, by no trigger at all.

    Attributes:
        status: the HTTP status that says so.
        retry_after_s: when to try again; None: never.

    """

    def __init__(self, message: str, status: int, kind: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.retry_after_s = retry_after_s


class Broker:
    """Triggers, their queues, and the ring of recent events. Belongs to one event loop."""

    def __init__(self, send: Send, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.send = send
        self.metrics = Metrics()
        self.ring = Ring(self.limits.ring_events, self.limits.ring_bytes)
        self.closed = False
        self._queues: dict[str, TriggerQueue] = {}

    def publish(self, event: Event) -> int:
        """Accept an event for every trigger that wants it; returns its number in the ring.

        Raises:
            PublishError: a queue is full, the broker stops, or the event has made too many hops; no trigger has it.

        """
        if self.closed:
            raise self._refused("the broker is stopping", 503, "stopping", _RETRY_AFTER_S)
        return self._publish(event)

    def take_reply(self, reply: Event, hops: int) -> Answer:
        """Publish an event that a subscriber answered with, also while the broker stops."""
        try:
            self._publish(reply.extended(**{HOPS: str(hops)}))
        except PublishError as error:
            return Answer(error.status, str(error).encode(), error.retry_after_s or 0.0)
        return Answer(202)

    def give_up(self, event: Event, undelivered: Undelivered) -> None:
        """Let watchers know of an event that a trigger gave up."""
        self.ring.append(event, undelivered)

    def triggers(self) -> list[tuple[Trigger, int]]:
        """Return every trigger and how many events wait for it."""
        return [(queue.trigger, queue.depth) for queue in self._queues.values()]

    def put_trigger(self, trigger: Trigger) -> bool:
        """Add a trigger, or replace the one of that name; returns whether it is new. It gets events from now on."""
        queue = self._queues.get(trigger.name)
        if queue is not None:
            queue.replace(trigger)
            return False
        self._queues[trigger.name] = TriggerQueue(trigger, self, self.limits.queued_events, self.limits.requests)
        return True

    async def remove_trigger(self, name: str) -> list[Event] | None:
        """Remove a trigger; returns the events that were not delivered to it, or None when there is no such trigger."""
        queue = self._queues.pop(name, None)
        if queue is None:
            return None
        left = await queue.stop()
        if name not in self._queues:  # not put again meanwhile
            self.metrics.remove_trigger(name)
        return left

    def close(self) -> None:
        """Accept no event from outside any more, and let no watcher wait."""
        self.closed = True
        self.ring.close()

    async def stop(self, within_s: float) -> dict[str, list[Event]]:
        """Close, deliver what can be within a bound, and stop; returns by trigger what was not delivered for sure."""
        self.close()
        try:
            async with asyncio.timeout(within_s):
                while any(queue.depth for queue in self._queues.values()):  # an answer of one may fill another
                    await asyncio.gather(*(queue.idle() for queue in self._queues.values()))
        except TimeoutError:
            pass
        left = {name: await queue.stop() for name, queue in self._queues.items()}
        for name, events in left.items():
            for event in events:
                log.error("trigger %s: %s was not delivered", name, event)
        return {name: events for name, events in left.items() if events}

    def _publish(self, event: Event) -> int:
        hops = self._hops_left(event)
        event = event.without(HOPS)
        wanting = [queue for queue in self._queues.values() if queue.trigger.filter.matches(event.attributes)]
        full = [queue.trigger.name for queue in wanting if not queue.has_room]
        if full:
            raise self._refused(
                f"no room for the event at the trigger {', '.join(full)}; try again", 429, "full", _RETRY_AFTER_S
            )
        number = self.ring.append(event)
        self.metrics.accepted.inc()
        for queue in wanting:
            queue.put(Item(event, hops))
        return number

    def _hops_left(self, event: Event) -> int:
        """Return the hops left, as Knative's ingress counts them: what is no number is as good as nothing."""
        given = event.attributes.get(HOPS, "")
        if not given.isdecimal() or len(given) > 9:
            return self.limits.hops
        left = min(int(given) - 1, self.limits.hops)
        if left <= 0:
            raise self._refused(f"the event has made too many hops ({HOPS} is {given})", 400, "too_many_hops")
        return left

    def _refused(self, message: str, status: int, kind: str, retry_after_s: float | None = None) -> PublishError:
        self.metrics.refused.labels(kind).inc()
        return PublishError(message, status, kind, retry_after_s)
