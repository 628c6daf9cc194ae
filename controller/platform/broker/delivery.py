"""The way of events to one trigger's subscriber: in order per subject, again when they fail, and away at last.

Events of one subject make a *lane*: each waits until the one before it was taken or given up, also while that one is
tried again. Lanes do not wait for each other, except that no more than so many requests are under way at once; a lane
that waits to try again holds none of them. Events without a subject are one lane.

What is given up goes to the dead letter sink with the extensions ``knativeerrordest``, ``knativeerrorcode`` and
``knativeerrordata``; the sink is tried as often as the subscriber. An event in an answer is published again, one hop
older; if the broker has no room for it, it is tried again as often as an event would be, and then the event that it
answered is given up, as Knative does. An answer with something else than an event is ignored (with a warning: a cluster
would take it for a failure); one with a broken event is a failure with 502.

A trigger may be replaced at any time; what waits then follows the new one.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from controller.platform.broker.ring import Undelivered
from controller.platform.broker.sending import Answer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from controller.platform.broker.metrics import Metrics
    from controller.platform.broker.sending import Send
    from controller.platform.broker.trigger import Trigger
    from controller.platform.broker.wire import Event

HOPS = "knativebrokerttl"
REPLY_DESTINATION = "midstream-broker"
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Item:
    """An event on its way, and how many hops it has left."""

    event: Event
    hops: int


class House(Protocol):
    """What a queue needs of its broker."""

    metrics: Metrics
    send: Send

    def take_reply(self, reply: Event, hops: int) -> Answer:
        """Publish an event that a subscriber answered with; the answer says whether that worked."""
        ...

    def give_up(self, event: Event, undelivered: Undelivered) -> None:
        """Hear that an event was given up."""
        ...


class TriggerQueue:
    """The events that wait for one trigger. Belongs to one event loop."""

    def __init__(self, trigger: Trigger, house: House, most_events: int, most_requests: int) -> None:
        self.trigger = trigger
        self.depth = 0
        self._house = house
        self._most_events = most_events
        self._slots = asyncio.Semaphore(most_requests)
        self._lanes: dict[str | None, deque[Item]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._replaced = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        house.metrics.add_trigger(trigger.name)

    @property
    def has_room(self) -> bool:
        """Whether one more event fits."""
        return self.depth < self._most_events

    def put(self, item: Item) -> None:
        """Take an event; who calls has asked whether it fits."""
        self._count(1)
        lane = self._lanes.get(item.event.subject)
        if lane is not None:
            lane.append(item)
            return
        self._lanes[item.event.subject] = deque([item])
        task = asyncio.create_task(self._drive(item.event.subject))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def replace(self, trigger: Trigger) -> None:
        """Follow another trigger of the same name from now on; what waits to be tried again is tried at once."""
        self.trigger = trigger
        self._replaced.set()
        self._replaced = asyncio.Event()

    async def idle(self) -> None:
        """Wait until nothing is left to deliver."""
        await self._idle.wait()

    async def stop(self) -> list[Event]:
        """Stop delivering; returns what was not delivered."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        left = [item.event for lane in self._lanes.values() for item in lane]
        self._lanes.clear()
        self._count(-len(left))
        return left

    async def _drive(self, subject: str | None) -> None:
        lane = self._lanes[subject]
        while lane:
            await self._deliver(lane[0])
            lane.popleft()
            self._count(-1)
        del self._lanes[subject]

    async def _deliver(self, item: Item) -> None:
        metrics, name = self._house.metrics, self.trigger.name
        answer = await self._until_final(lambda: self._to_subscriber(item.event))
        destination = self.trigger.subscriber
        if answer.ignored:
            metrics.ignored_replies.labels(name).inc()
            log.warning("trigger %s: %s answered %s with something that is no event; on a cluster that is a failure",
                        name, destination, item.event)  # fmt: skip
        reply = answer.reply
        if answer.good and reply is not None:
            metrics.replied.labels(name).inc()
            answer = await self._until_final(lambda: self._publish(reply, item.hops))
            destination = REPLY_DESTINATION
        if answer.good:
            metrics.delivered.labels(name).inc()
        else:
            await self._bury(item, destination, answer)

    async def _until_final(self, attempt: Callable[[], Awaitable[Answer]]) -> Answer:
        """Attempt until it works, or the answer is final, or no retry is left."""
        retries_made = 0
        while True:
            async with self._slots:
                answer = await attempt()
            if answer.malformed:
                self._house.metrics.malformed_replies.labels(self.trigger.name).inc()
            if answer.good or not answer.retried or retries_made >= self.trigger.delivery.retries:
                return answer
            delay_s = self.trigger.delivery.delay_s(retries_made, answer.retry_after_s)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._replaced.wait(), delay_s)
            retries_made += 1
            self._house.metrics.retried.labels(self.trigger.name).inc()

    async def _to_subscriber(self, event: Event) -> Answer:
        return await self._post(self.trigger.subscriber, event, prefer_reply=True)

    async def _publish(self, reply: Event, hops: int) -> Answer:
        return self._house.take_reply(reply, hops)

    async def _post(self, url: str, event: Event, *, prefer_reply: bool) -> Answer:
        delivery = self.trigger.delivery
        return await self._house.send(
            url, event, structured=delivery.structured, timeout_s=delivery.timeout_s, prefer_reply=prefer_reply
        )

    async def _bury(self, item: Item, destination: str, answer: Answer) -> None:
        """Give an event up: to the dead letter sink if there is one."""
        name = self.trigger.name
        self._house.metrics.dead.labels(name).inc()
        self._house.give_up(item.event, Undelivered(name, destination, answer.status, answer.said))
        log.error(
            "trigger %s: %s was not taken by %s: %d %r", name, item.event, destination, answer.status, answer.said
        )
        letter = item.event.extended(**answer.error_extensions(destination), **{HOPS: str(item.hops)})
        if self.trigger.delivery.dead_letter_sink is not None:
            answer = await self._until_final(lambda: self._to_sink(letter))
            if answer.good:
                return
            log.error("trigger %s: %s was not taken by its dead letter sink either: %d %r",
                      name, item.event, answer.status, answer.said)  # fmt: skip
        self._house.metrics.lost.labels(name).inc()

    async def _to_sink(self, letter: Event) -> Answer:
        sink = self.trigger.delivery.dead_letter_sink
        if sink is None:  # taken away meanwhile
            return Answer(410)
        return await self._post(sink, letter, prefer_reply=False)

    def _count(self, by: int) -> None:
        self.depth += by
        self._house.metrics.depth.labels(self.trigger.name).set(self.depth)
        if self.depth:
            self._idle.clear()
        else:
            self._idle.set()
