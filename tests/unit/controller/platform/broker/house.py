"""Events, triggers and a broker whose subscribers are functions of the test."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from typing import TYPE_CHECKING, Any

from controller.platform.broker.broker import Broker, Limits
from controller.platform.broker.sending import Answer
from controller.platform.broker.trigger import Delivery, Trigger
from controller.platform.broker.wire import Event
from tests.unit.runtime.head.fake_time import now

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

GOOD = Answer(200)


def event(name: str = "1", subject: str | None = "smollm", kind: str = "t", **attributes: str) -> Event:
    found = {"specversion": "1.0", "id": name, "source": "/test", "type": kind, **attributes}
    return Event({**found, "subject": subject} if subject else found)


def trigger(name: str = "a", *, delivery: Delivery | None = None, **fields: Any) -> Trigger:
    return Trigger(name, f"http://{name}", delivery=delivery or Delivery(retries=3), **fields)


class Gate:
    """A subscriber that keeps events until the test lets them go."""

    def __init__(self) -> None:
        self.entered: asyncio.Queue[str] = asyncio.Queue()
        self._open = asyncio.Event()

    def open(self) -> None:
        self._open.set()

    async def __call__(self, told: Event) -> Answer:
        self.entered.put_nowait(told.attributes["id"])
        await self._open.wait()
        return GOOD


class Subscribers:
    """What answers at each address, and what came there: (seconds of fake time, event)."""

    def __init__(self) -> None:
        self.behaviour: dict[str, Callable[[Event], Awaitable[Answer]]] = {}
        self.got: dict[str, list[tuple[float, Event]]] = defaultdict(list)
        self.asked: list[dict[str, Any]] = []
        self.under_way = 0
        self.most_under_way = 0

    def answers(self, name: str, *answers: Answer) -> None:
        """Let a subscriber give these answers, and the last one for ever."""
        left = deque(answers)

        async def behave(_: Event) -> Answer:
            return left.popleft() if len(left) > 1 else left[0]

        self.behaviour[f"http://{name}"] = behave

    def ids(self, name: str) -> list[str]:
        return [told.attributes["id"] for _, told in self.got[f"http://{name}"]]

    def times(self, name: str) -> list[float]:
        return [round(at, 3) for at, _ in self.got[f"http://{name}"]]

    async def __call__(self, url: str, event: Event, **how: Any) -> Answer:
        self.got[url].append((now(), event))
        self.asked.append({"url": url, **how})
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            behave = self.behaviour.get(url)
            return GOOD if behave is None else await behave(event)
        finally:
            self.under_way -= 1


def house(*triggers: Trigger, **limits: int) -> tuple[Broker, Subscribers]:
    subscribers = Subscribers()
    broker = Broker(subscribers, Limits(**limits))
    for one in triggers:
        broker.put_trigger(one)
    return broker, subscribers


async def settled(broker: Broker, within_s: float = 100_000) -> None:
    """Wait (in fake time) until everything is delivered or given up."""
    await until(lambda: not any(depth for _, depth in broker.triggers()), within_s)


async def until(condition: Callable[[], bool], within_s: float = 1.0) -> None:
    """Wait for a condition, in fake time."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - fake time: it takes none
            await asyncio.sleep(0.01)


def count(broker: Broker, name: str, **labels: str) -> float:
    return broker.metrics.registry.get_sample_value(f"midstream_broker_{name}", labels) or 0.0
