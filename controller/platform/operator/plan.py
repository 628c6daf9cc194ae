"""What to do about a pipeline now, and what to say of it: a pure function of what was observed.

How an edit of `spec.stages`, `spec.auto` or `spec.migration` becomes a live change::

    new generation (or a head that was started again and has the layout of its start)
        │  the layout is the one that serves ──────────────────────────────────────────► settled
        ▼
    REQUEST   the memory is written, then `reconfiguration.requested` goes to the Broker: the road of every request,
        │     so that whoever watches events sees this one too. Its key is <source>#<uid>/<generation>.
        ▼
    asked     the head's status is looked at until the change with this key has ended ────► settled: committed, aborted
        │  nothing is known of the key after `PATIENCE_S`, or there is no Broker
        ▼
    INQUIRE   the head is asked with the same key. It answers with the change of that key, or with the refusal that the
              event got; did the event never come, this starts the change. Twice does nothing twice.

The memory (`Memory`) is an annotation of the object: an operator that was started again goes on where the last one
stopped. What is settled is not asked for again: a layout that somebody else asks for later, by an event, stays; so does
a refusal, until the next edit.

Conditions: `Applied` (the objects are on the API server), `Available` (the head takes requests), `Reconfigured` (the
spec is what serves), and `Ready`, which is true only if all three are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from controller.platform.operator.head import ChangeReport, HeadAway, HeadReport, Refusal
from controller.platform.operator.status import MOST_MESSAGE, Condition, Truth, serving, with_times
from runtime.migration.protocol import Fallback, Method

if TYPE_CHECKING:
    from collections.abc import Mapping

SOURCE = "/midstream/operator"
MEMORY_ANNOTATION = "midstream.dev/reconfiguration"
PATIENCE_S = 30.0
"""How long an event may take to the head: a function that has scaled to zero has to be started for it."""

CHANGED_SINCE = "ChangedSince"
"""Reason of a condition: the layout is what somebody else asked for after this object."""

STEADY_S = 10.0
SOON_S = 1.0
_MOST_RETRY_S = 60.0
_FINAL = {"forbidden": "Forbidden", "invalid": "Refused", "superseded": "Superseded", "last_stage": "Refused"}
_NOT_SERVING = {"asleep": "Asleep", "waking": "Waking", "recovering": "Recovering", "forbidden": "Forbidden"}


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator has to remember of the last request: which generation it was for, which head, since when."""

    generation: int
    boot: str
    state: Literal["asked", "settled"]
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Request:
    """A request for another layout."""

    layers: str
    method: Method
    fallback: Fallback
    generation: int
    id: str

    @property
    def key(self) -> str:
        """The key of the event, and of the same request to the head."""
        return f"{SOURCE}#{self.id}"


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why the objects of the pipeline are not, or not all, on the API server. `lasting`: until somebody edits."""

    reason: str
    message: str
    lasting: bool = True


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything that a decision depends on; times in seconds of the unix epoch.

    wanted: the layout of the spec, None while nobody knows how many layers the model has.
    unwanted: why the spec makes no layout for this model and these nodes.
    applied: what keeps the objects from being there; None when they are.
    restarting: fields that differ from those that the head was started with; its pod is being replaced.
    pod_started: whether a pod of the head, of this start, is up.
    pod_trouble: why the pod does not come up.
    answer: what the head says of the request, if it was asked.
    event_failed: why the last event did not get to the Broker.
    """

    uid: str
    generation: int
    now: float
    head: HeadReport | HeadAway
    wanted: str | None = None
    unwanted: str | None = None
    method: Method = Method.PRE_COPY
    fallback: Fallback = Fallback.ABORT
    applied: Trouble | None = None
    restarting: bool = False
    pod_started: bool = False
    pod_trouble: str | None = None
    memory: Memory | None = None
    answer: ChangeReport | Refusal | HeadAway | None = None
    event_failed: bool = False
    status: Mapping[str, Any] = field(default_factory=dict)
    failures: int = 0

    @property
    def request(self) -> Request | None:
        """The request for this generation."""
        if self.wanted is None:
            return None
        return Request(self.wanted, self.method, self.fallback, self.generation, f"{self.uid}/{self.generation}")


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do: at most one of `request` (tell the Broker) and `inquire` (ask the head), then write the rest.

    memory: to be kept before anything else is done; None to leave it.
    retry_s: when to look again.
    """

    status: dict[str, Any]
    request: Request | None = None
    inquire: Request | None = None
    memory: Memory | None = None
    retry_s: float = STEADY_S


@dataclass(frozen=True, slots=True)
class _Change:
    """How far the spec is from being what serves."""

    condition: Condition
    request: bool = False
    inquire: bool = False
    memory: Memory | None = None
    retry_s: float = STEADY_S


def decide(seen: Observed) -> Decision:
    """Say what is to be done, and the status that is true now."""
    available = _available(seen)
    change = _change(seen)
    applied = _applied(seen)
    ready = _ready(available, change.condition, applied)
    retry_s = change.retry_s
    if isinstance(seen.head, HeadAway) or (seen.applied and not seen.applied.lasting):
        retry_s = back_off(seen.failures)
    elif available.status != "True":
        retry_s = min(retry_s, SOON_S)
    status = _status(seen, available, change.condition, (ready, applied, available, change.condition))
    wanted = seen.request
    return Decision(
        status,
        request=wanted if change.request else None,
        inquire=wanted if change.inquire else None,
        memory=change.memory,
        retry_s=retry_s,
    )


def back_off(failures: int) -> float:
    """Return how long to wait after so many failures in a row, in seconds."""
    return float(min(_MOST_RETRY_S, SOON_S * 2 ** min(failures, 10)))


# -- conditions --------------------------------------------------------------------------------------------------------


def _applied(seen: Observed) -> Condition:
    if seen.applied is None:
        return Condition("Applied", "True", "Applied", "all objects of the pipeline are there")
    return Condition("Applied", "False", seen.applied.reason, seen.applied.message[:MOST_MESSAGE])


def _available(seen: Observed) -> Condition:
    """Say whether the head takes requests. A pipeline that sleeps does: it wakes for them."""
    if seen.pod_trouble and not seen.pod_started:
        return Condition("Available", "False", "HeadFailed", f"the head's pod does not start: {seen.pod_trouble}")
    if seen.restarting:
        return Condition("Available", "False", "Restarting", "the head is being replaced: fields need its restart")
    if isinstance(seen.head, HeadAway):
        if seen.pod_started:
            return Condition("Available", "False", f"Head{seen.head.reason}", seen.head.message[:MOST_MESSAGE])
        return Condition("Available", "False", "Starting", seen.head.message[:MOST_MESSAGE])
    phase = seen.head.phase
    if phase == "failed":
        return Condition("Available", "False", "HeadFailed", "the pipeline has failed; its head will be replaced")
    if phase in {"waking", "recovering"}:
        return Condition("Available", "False", _NOT_SERVING[phase], f"requests are held while the pipeline is {phase}")
    if phase == "forbidden":
        return Condition("Available", "False", "Forbidden", "requests are held: the intents forbid where it serves")
    if phase == "asleep":
        return Condition("Available", "True", "Asleep", "the pipeline sleeps until the next request")
    return Condition("Available", "True", "Serving", f"{seen.head.layers} serves")


def _change(seen: Observed) -> _Change:
    """Say what is to be done to have the spec serve."""
    head = seen.head
    if isinstance(head, HeadAway) or seen.restarting:
        said = said_before(seen)
        return _Change(said or _condition("Unknown", "HeadAway", "the head cannot be asked now"), retry_s=SOON_S)
    if seen.unwanted is not None:
        # What serves stays; should the node come, say, the request is made after all.
        return _Change(_condition("False", "Impossible", seen.unwanted))
    request = seen.request
    if request is None:
        return _Change(_condition("Unknown", "HeadAway", "nobody knows yet how many layers the model has"))
    memory = seen.memory
    if memory is None or memory.generation != seen.generation or memory.boot != head.boot:
        return _begin(seen, head)
    if memory.state == "settled":
        return _Change(_steady(seen, head))
    return _follow(seen, head, request, memory)


def _begin(seen: Observed, head: HeadReport) -> _Change:
    """Nothing was asked of this head for this generation."""
    if head.change is not None:
        waiting = f"{head.change} is under way; this one is next"
        return _Change(_condition("Unknown", "Waiting", waiting), retry_s=SOON_S)
    # An older request that is still on its way would undo an edit that nobody told the head about.
    nothing_on_its_way = seen.memory is None or seen.memory.state == "settled"
    if head.layers == seen.wanted and nothing_on_its_way:
        return _settle(seen, head, "True", "Serving", f"{head.layers} serves")
    memory = Memory(generation=seen.generation, boot=head.boot, state="asked", at=seen.now)
    asked = _condition("Unknown", "Requested", f"{seen.wanted} is asked for; {head.layers} serves")
    return _Change(asked, request=True, memory=memory, retry_s=SOON_S)


def _follow(seen: Observed, head: HeadReport, request: Request, memory: Memory) -> _Change:
    """The head was asked; see what became of it."""
    last = head.last_change
    answer = seen.answer
    for report in (last, answer):
        if isinstance(report, ChangeReport) and report.request == request.key and report.ended:
            return _ended(seen, head, report)
    if isinstance(answer, Refusal):
        if answer.kind == "unchanged":
            return _settle(seen, head, "True", "Serving", f"{head.layers} serves")
        if answer.kind in _FINAL:
            return _settle(seen, head, "False", _FINAL[answer.kind], answer.message)
        return _Change(_condition("Unknown", "Waiting", answer.message), retry_s=2 * SOON_S)
    if head.change is not None:
        return _Change(_condition("Unknown", "Changing", f"{head.change} is under way"), retry_s=SOON_S)
    known = isinstance(answer, ChangeReport)  # it has begun since the status was read
    overdue = seen.event_failed or seen.now - memory.at >= PATIENCE_S
    asked = _condition("Unknown", "Requested", f"{request.layers} is asked for; {head.layers} serves")
    return _Change(asked, inquire=overdue and answer is None and not known, retry_s=SOON_S)


def _ended(seen: Observed, head: HeadReport, report: ChangeReport) -> _Change:
    if report.state == "committed":
        return _settle(seen, head, "True", "Serving", f"{report.id} was committed: {seen.wanted} serves")
    return _settle(seen, head, "False", "Aborted", f"{report.id} was aborted: {report.reason}; {head.layers} serves")


def _settle(seen: Observed, head: HeadReport, status: Truth, reason: str, message: str) -> _Change:
    memory = Memory(generation=seen.generation, boot=head.boot, state="settled")
    # Functions follow at the next look.
    return _Change(_condition(status, reason, message), memory=memory, retry_s=SOON_S)


def _steady(seen: Observed, head: HeadReport) -> Condition:
    """Repeat what was settled; say so if the layout is another one by now."""
    said = said_before(seen)
    if said is not None and said.status == "False":
        return said
    if head.layers == seen.wanted:
        return _condition("True", "Serving", f"{head.layers} serves")
    if head.change is not None:
        return _condition("True", "Changing", f"{head.change} is under way, which this object did not ask for")
    return _condition(
        "True", CHANGED_SINCE, f"{head.layers} serves: somebody asked for it after this object's {seen.wanted}"
    )


def said_before(seen: Observed) -> Condition | None:
    """Return the condition `Reconfigured` as it was told for this generation."""
    for told in seen.status.get("conditions") or ():
        if told["type"] == "Reconfigured" and told.get("observedGeneration") == seen.generation:
            return Condition("Reconfigured", told["status"], told["reason"], told["message"])
    return None


def _condition(status: Truth, reason: str, message: str) -> Condition:
    return Condition("Reconfigured", status, reason, message[:MOST_MESSAGE])


def _ready(available: Condition, reconfigured: Condition, applied: Condition) -> Condition:
    """Sum up: the worst one decides, and what is false is worse than what is not known."""
    for wrong in ("False", "Unknown"):
        for condition in (applied, available, reconfigured):
            if condition.status == wrong:
                return Condition("Ready", condition.status, condition.reason, condition.message)
    return Condition("Ready", "True", available.reason, available.message)


def _status(
    seen: Observed, available: Condition, reconfigured: Condition, conditions: tuple[Condition, ...]
) -> dict[str, Any]:
    kept = {
        key: seen.status[key]
        for key in ("layout", "epoch", "stages", "stageCount", "lastChange", "lastPauseMs")
        if key in seen.status
    }
    return {
        **kept,
        **(serving(seen.head) if isinstance(seen.head, HeadReport) else {}),
        "phase": _phase(seen, available, reconfigured),
        "observedGeneration": seen.generation,
        "conditions": with_times(conditions, seen.status, seen.generation, seen.now),
    }


def _phase(seen: Observed, available: Condition, reconfigured: Condition) -> str:
    head = seen.head
    if available.reason in {"HeadFailed", "HeadRefused", "HeadUnknown", "HeadUnreachable"}:
        return "Failed"
    if isinstance(head, HeadAway) or seen.restarting:
        return "Starting" if seen.applied is None else "Pending"
    if head.phase in _NOT_SERVING:
        return _NOT_SERVING[head.phase]
    asking = reconfigured.status == "Unknown" and reconfigured.reason in {"Requested", "Changing", "Waiting"}
    return "Changing" if head.change is not None or asking else "Serving"
