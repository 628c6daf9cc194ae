"""From a sentence to a proven plan: translate, compile, check.

::

    sentence --Translator--> typed intent --compile_intents--> placement, routes, rules --check--> plan
                  |                              |                                        |
               refusal                        refusal                             refusal (not proven)

The compiler sees the new intent together with all that are active: they hold together, or the new one is refused.
What it made is then walked through by the checker, which knows nothing of the compiler; a plan that is not proven is
refused as well, whoever of the two is wrong.

A translator whose word is not enough (`needs_witness`) is compared with the witness: where both have the same effect
on this inventory, the witness' intent is taken; where the witness understood something else, or refuses for a reason of
its own, the sentence is refused; where the witness did not understand it, a person has to confirm the read-back.
"""

from __future__ import annotations

import gc
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from intents.compilation import compile_intents
from intents.compilation.compiled import NOTHING
from intents.model.intent import IntentMetadata, PrivacyIntent, intent_name
from intents.model.refusal import Refusal, RefusalKind
from intents.proof.checker import Observed, check
from intents.readback import read_back

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from intents.compilation.compiled import Compiled
    from intents.model.inventory import Inventory
    from intents.proof.report import Report
    from intents.readback import Naming
    from intents.translation.interface import Span, Translation, Translator


@dataclass(frozen=True, slots=True)
class Plan:
    """What a sentence comes to; either `refusal` is set, or `intent`, `compiled` and `report` are.

    Attributes:
        intent: The typed intent; also set when it was understood and then refused.
        refusal: Why nothing would be enforced.
        compiled: Placement, routes and rules of all active intents together with this one.
        report: The proof of it.
        readback: The intent in plain words.
        spans: What each part of the sentence was taken to mean.
        needs_confirmation: Only a person can vouch for the translation.
        latency_ms: From the sentence to the proof, wall clock.
        tokens: Of a language model.
    """

    sentence: str
    intent: PrivacyIntent | None = None
    refusal: Refusal | None = None
    compiled: Compiled | None = None
    report: Report | None = None
    readback: tuple[str, ...] = ()
    spans: tuple[Span, ...] = ()
    needs_confirmation: bool = False
    latency_ms: float = 0.0
    tokens: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``midstream intent plan --json`` prints."""
        compiled = self.compiled if self.refusal is None else None
        return {
            "outcome": "ok" if self.refusal is None else "refused",
            "reason": None if self.refusal is None else _reason(self.refusal),
            "readback": list(self.readback),
            "needs_confirmation": self.needs_confirmation,
            "intent": None if self.intent is None else self.intent.model_dump(mode="json", exclude_defaults=False),
            "placement": {
                each.workload: {"allowed_nodes": list(each.allowed_nodes), "node": each.node}
                for each in (compiled.placements if compiled else ())
            },
            "routes": [
                {"from": each.source, "to": each.target, "path": list(each.path)}
                for each in (compiled.routes if compiled else ())
            ],
            "blocked": [{"from": source, "to": target} for source, target in (compiled.blocked if compiled else ())],
            "kubernetes": list(compiled.kubernetes) if compiled else [],
            "flows": list(compiled.flows) if compiled else [],
            "checks": [
                {
                    "intent": each.intent,
                    "subject": each.subject,
                    "rule": each.rule,
                    "looked_at": list(each.looked_at),
                    "holds": each.holds,
                    "reason": each.reason,
                }
                for each in (self.report.checks if self.report else ())
            ],
            "spans": [
                {"start": each.start, "end": each.end, "text": each.text, "meaning": each.meaning}
                for each in self.spans
            ],
            "latency_ms": round(self.latency_ms, 3),
            "tokens": self.tokens,
        }


def plan_sentence(
    sentence: str,
    inventory: Inventory,
    translator: Translator,
    *,
    active: Sequence[PrivacyIntent] = (),
    witness: Translator | None = None,
    name: str | None = None,
    naming: Naming | None = None,
) -> Plan:
    """Plan one sentence together with the active intents; see the module.

    Args:
        name: Of the intent; None: derived from the sentence.
        witness: Compared with, if the translator needs one.
        naming: Names for lists of codes in the read-back.

    Raises:
        TranslatorError: the translator could not be asked.
    """
    started = time.perf_counter()
    translation = translator.translate(sentence, inventory)
    unsure = False
    if translation.intent is not None and getattr(translator, "needs_witness", False):
        translation, unsure = _witnessed(translation, sentence, inventory, witness)
    if translation.intent is None:
        plan = Plan(sentence, refusal=translation.refusal)
    else:
        metadata = IntentMetadata(name=name or intent_name(sentence), sentence=sentence)
        plan = plan_intent(
            translation.intent.model_copy(update={"metadata": metadata}), inventory, active=active, naming=naming
        )
    return replace(
        plan,
        spans=translation.spans,
        tokens=translation.tokens,
        needs_confirmation=unsure and plan.refusal is None,
        latency_ms=1e3 * (time.perf_counter() - started),
    )


def plan_intent(
    intent: PrivacyIntent,
    inventory: Inventory,
    *,
    active: Sequence[PrivacyIntent] = (),
    naming: Naming | None = None,
) -> Plan:
    """Compile and prove a typed intent together with the active ones; one of the same name is replaced by it."""
    started = time.perf_counter()
    together = [*(each for each in active if each.metadata.name != intent.metadata.name), intent]
    plan = replace(plan_all(together, inventory), sentence=intent.metadata.sentence or "", intent=intent)
    words = read_back(intent) if naming is None else read_back(intent, naming)
    return replace(plan, readback=words, latency_ms=1e3 * (time.perf_counter() - started))


def plan_all(intents: Sequence[PrivacyIntent], inventory: Inventory) -> Plan:
    """Compile and prove these intents together."""
    with _no_collection():
        compiled = compile_intents(inventory, intents)
        if isinstance(compiled, Refusal):
            return Plan("", refusal=compiled)
        report = check(intents, planned_state(compiled, inventory))
    if report.holds:
        return Plan("", compiled=compiled, report=report)
    failed = tuple(f"{each.subject}: {each.rule}: {each.reason}" for each in report.failures)
    refusal = Refusal(RefusalKind.UNTRUSTED, f"the plan could not be proven: {failed[0]}", details=failed)
    return Plan("", refusal=refusal, report=report)


def enforced(active: Sequence[PrivacyIntent], inventory: Inventory) -> Compiled:
    """Return what is enforced for these intents; nothing where they cannot be met any more: all is then told anew."""
    with _no_collection():
        compiled = compile_intents(inventory, active) if active else NOTHING
    return NOTHING if isinstance(compiled, Refusal) else compiled


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the collector of cycles still: it finds none in tens of thousands of flow rules, and doubles the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def planned_state(compiled: Compiled, inventory: Inventory) -> Observed:
    """Return the state that the plan leads to, for the checker."""
    placement = {each.name: (each.node,) for each in inventory.workloads if each.node is not None}
    placement |= {each.workload: (each.node,) for each in compiled.placements}
    return Observed(placement, compiled.flows, inventory, inventory.version, compiled.kubernetes)


def same_effect(one: PrivacyIntent, other: PrivacyIntent, inventory: Inventory) -> bool:
    """Whether two intents allow exactly the same placements, routes and transfers on this inventory."""
    both = [
        compile_intents(inventory, [each.model_copy(update={"metadata": IntentMetadata(name="compared")})])
        for each in (one, other)
    ]
    first, second = both
    if isinstance(first, Refusal) or isinstance(second, Refusal):
        return False
    return _effect(first) == _effect(second)


def _effect(compiled: Compiled) -> tuple[object, ...]:
    return compiled.placements, compiled.routes, compiled.blocked, compiled.transfers, compiled.flows


def _witnessed(
    translation: Translation, sentence: str, inventory: Inventory, witness: Translator | None
) -> tuple[Translation, bool]:
    """Return the translation that counts, and whether a person still has to vouch for it."""
    if witness is None or translation.intent is None:
        return translation, True
    other = witness.translate(sentence, inventory)
    if other.intent is None:
        if other.refusal is not None and other.refusal.kind is not RefusalKind.NOT_UNDERSTOOD:
            return replace(translation, intent=None, refusal=other.refusal), False
        return translation, True
    if same_effect(translation.intent, other.intent, inventory):
        return replace(translation, intent=other.intent, spans=other.spans), False
    readings = (*read_back(translation.intent), "-- against --", *read_back(other.intent))
    refusal = Refusal(RefusalKind.UNTRUSTED, "the translators understood different things", details=readings)
    return replace(translation, intent=None, refusal=refusal), False


def _reason(refusal: Refusal) -> dict[str, Any]:
    return {
        "kind": str(refusal.kind),
        "message": refusal.message,
        "nearest": refusal.nearest,
        "details": list(refusal.details),
    }
