"""Privacy intents as a function: a sentence in, what became of it out.

A sentence is translated (embedded: no network), compiled together with all that are active, proven, enforced by the
configured stores, and only then remembered as active. It is answered with ``dev.midstream.intent.decided``. One that
is refused changes nothing and is answered with 422 and the reason; as a broker hears no more than that, the event that
tells of it goes to ``K_SINK``.

An event is known by its source and id: it gets the same answer again, and nothing is done twice. Meanwhile the active
intents are watched (`function.watch`).
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
from pydantic import ValidationError

from function.house import Enforcer, House
from function.memory import Answer, Memory
from function.settings import IntentSettings, read_intent_settings
from function.watch import Watch, Watched
from intents.errors import IntentsError
from intents.knowledge.naming import naming
from intents.live_midstream import MidstreamSource
from intents.model.intent import PrivacyIntent
from intents.planning import plan_intent, plan_sentence
from intents.store import IntentStore
from intents.translators import witness
from runtime.events.catalogue import IntentDecided, Type
from runtime.events.envelope import EventError, InvalidData, make
from runtime.events.from_journal import source_of
from runtime.events.publisher import Publisher, PublisherError
from runtime.head.event_function import EventFunction, SettingsError, TryAgain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from intents.model.inventory import Inventory
    from intents.planning import Plan
    from intents.translation.interface import Translator
    from runtime.events.envelope import Event

_MOST_CHARACTERS = 4000
_MOST_LINE_CHARACTERS = 2000
_MOST_LINES = 100
_MOST_PLACED = 1000


class Refused(EventError):
    """The sentence was understood to be refused, or not understood; nothing changed."""

    code = 422

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message, "data.text")
        self.kind = kind


def new() -> Intent:
    """Return the function's instance; func-python calls this once."""
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        settings = read_intent_settings(os.environ)
        publisher = Publisher.from_environment(os.environ, settings.pipeline, "intents")
        publish = publisher.publish if publisher else _tell_nobody
        return Intent(settings, witness(), _targets(settings), publish, _head(settings))
    except (SettingsError, PublisherError, IntentsError) as error:
        raise SystemExit(str(error)) from error


def _targets(settings: IntentSettings) -> Enforcer:
    from intents.targets import Targets

    return Targets(onos=settings.onos, openflow=settings.openflow, kubernetes=settings.kubernetes, folder=settings.out)


def _head(settings: IntentSettings) -> MidstreamSource | None:
    if settings.endpoint is None:
        return None
    return MidstreamSource(settings.endpoint, settings.pipeline, settings.here)


def _tell_nobody(event: Event) -> None:
    """Without a sink there is nobody to tell."""


class Intent(EventFunction):
    """Takes ``dev.midstream.intent.submitted``.

    Args:
        settings: See there.
        translator: Understands sentences; its word is enough.
        enforcer: Makes plans real.
        publish: Takes events that are no answers.
        head: Has the running pipeline; None: the inventory has it.
    """

    def __init__(
        self,
        settings: IntentSettings,
        translator: Translator,
        enforcer: Enforcer,
        publish: Callable[[Event], None] = _tell_nobody,
        head: MidstreamSource | None = None,
    ) -> None:
        super().__init__(settings.pipeline, [Type.INTENT_SUBMITTED])
        self._translator = translator
        self._store = IntentStore(settings.state)
        self._memory = Memory(settings.state / "answers")
        self._house = House(settings.inventory, self._store, enforcer, None if head is None else head.read)
        self._publish = publish
        watched = Watched(self._house, settings.pipeline, publish, head if settings.move else None)
        self.watch = Watch(watched, settings.watch_s)
        self._watches = settings.watch_s > 0

    def start(self, cfg: Mapping[str, str]) -> None:
        """Begin to watch the active intents."""
        super().start(cfg)
        if self._watches:
            self.watch.start()

    def end(self) -> None:
        """Watch no more, and take no more events."""
        self.watch.end()
        super().end()

    def alive(self) -> tuple[bool, str]:
        """Whether the active intents are watched."""
        return (True, "alive") if self.watch.broken is None else (False, self.watch.broken)

    def ready(self) -> tuple[bool, str]:
        """Whether inventory and active intents can be read."""
        if self.ending.is_set():
            return False, "ending"
        try:
            self._house.inventory()
            self._store.active()
        except IntentsError as error:
            return False, str(error)
        return True, "ready"

    def answer(self, event: Event) -> Event:
        """Decide on a sentence, or tell again what was decided."""
        try:
            with self._store.locked():
                known = self._memory.find(event.key)
                decided = known or self._decide(event)
                if known is None:
                    self._memory.keep(event.key, decided)
        except IntentsError as error:
            raise TryAgain(str(error), "intents_unavailable", after_s=5.0) from error
        told = _told(event, decided)
        if decided.data["outcome"] == "ok":
            return told
        if known is None:
            self._publish(told)
        kind, reason, nearest = (decided.data[name] for name in ("kind", "reason", "nearest"))
        raise Refused(str(kind), f"{reason}; nearest: {nearest}" if nearest else str(reason))

    def _decide(self, event: Event) -> Answer:
        snapshot, active = self._house.inventory(), self._store.active()
        plan = self._plan(event, snapshot, active)
        if plan.refusal is None and plan.intent is not None and plan.compiled is not None:
            others = (each for each in active if each.metadata.name != plan.intent.metadata.name)
            self._house.enforce(plan.compiled, snapshot, active, (*others, plan.intent))
            self._store.put(plan.intent)
        data = msgspec.to_builtins(_decided(event, plan, snapshot))
        return Answer(data, time.time())

    def _plan(self, event: Event, snapshot: Inventory, active: tuple[PrivacyIntent, ...]) -> Plan:
        name, text = event.data["intent"], event.data["text"]
        try:
            if "specs" not in event.data:
                return plan_sentence(text, snapshot, self._translator, active=active, name=name, naming=naming)
            typed = PrivacyIntent.model_validate(
                {"metadata": {"name": name, "sentence": text}, "specs": event.data["specs"]}
            )
        except ValidationError as error:
            first = error.errors()[0]
            at = ".".join(str(part) for part in first["loc"])
            where = f"data.{at}" if at.startswith("specs") else "data.intent"
            raise InvalidData(f"{where}: {first['msg']}", where) from error
        return plan_intent(typed, snapshot, active=active, naming=naming)


def _decided(event: Event, plan: Plan, snapshot: Inventory) -> IntentDecided:
    refusal = plan.refusal
    subjects = [spec.subjects for spec in plan.intent.specs] if plan.intent is not None else []
    about = {each.name for each in snapshot.workloads if any(s.holds(each.name, each.labels) for s in subjects)}
    placements = plan.compiled.placements if plan.compiled is not None and refusal is None else ()
    return IntentDecided(
        pipeline=event.data["pipeline"],
        intent=event.data["intent"],
        outcome="ok" if refusal is None else "refused",
        kind=None if refusal is None else str(refusal.kind),
        reason=None if refusal is None else refusal.message[:_MOST_CHARACTERS],
        nearest=None if refusal is None or refusal.nearest is None else refusal.nearest[:_MOST_CHARACTERS],
        readback=[line[:_MOST_LINE_CHARACTERS] for line in plan.readback[:_MOST_LINES]],
        placement=dict([(each.workload, each.node) for each in placements if each.workload in about][:_MOST_PLACED]),
    )


def _told(event: Event, answer: Answer) -> Event:
    """Return the event that tells of a decision; told again, it is the same."""
    pipeline = event.data["pipeline"]
    data: dict[str, Any] = dict(answer.data)
    return make(
        Type.INTENT_DECIDED,
        source_of(pipeline),
        pipeline,
        data,
        id=f"request-{hashlib.sha256(event.key.encode()).hexdigest()[:32]}.decided",
        time=datetime.fromtimestamp(answer.at, UTC),
    )
