"""Whether the active intents allow a placement and the way to it (I5): asked of a guard outside this pipeline.

Problem: a change, a recovery or a start decides where prompts, KV and weights go. What is allowed is known to whoever
keeps the intents, changes at any time, and must not be decided here. Protocol: a `Guard` is told the pipeline, nodes
before and after, and every way between two nodes that bytes would take; it allows that or says why not. It is asked

* in the plan of a change, also of one for a stage that comes or goes, before anything is touched;
* before each round of pre-copy and right before the cutover: what is forbidden meanwhile aborts the change;
* for where the layers of lost stages and lost nodes go, and before a node gets weights, again or for the first time;
* before a pipeline starts, and before it wakes;
* now and then for what serves, which computes nothing while it is forbidden (`runtime.engine.brake`).

What a guard does not allow within a bound is not allowed: fail closed. A change that computes all KV again carries
nothing over from the old nodes, so it can leave a node that has become forbidden.

Caveats: layers leave a node that has become forbidden only when whoever watches the intents asks for it. Between the
last question and the flip there are the batches in flight and the last delta. Asked about are stages; the head, and the
way between it and the stages, are a matter of where the head is started.
"""

from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from runtime.layout import LOCAL_NODE
from runtime.migration.errors import ChangeForbidden, GuardAsked, GuardSilent

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from runtime.layout import Layout

State = Literal["kv", "prompts", "weights"]

ANSWER_S = 2.0
_FRESH_S = 5.0
_ASK_AGAIN_S = 0.5


@dataclass(frozen=True, slots=True)
class Ruling:
    """What a guard says. `reason`: why it is not allowed; `known`: False when nothing could be found out about it."""

    allowed: bool
    reason: str = ""
    known: bool = True


class Guard(Protocol):
    """Whoever knows the intents."""

    def judge(
        self, pipeline: str, old: Sequence[str], new: Sequence[str], transfers: Sequence[tuple[str, str]], state: State
    ) -> Ruling:
        """Judge a placement and the way to it. May block.

        Args:
            pipeline: its name.
            old: nodes that something is carried over from.
            new: nodes that shall serve.
            transfers: (source node, target node) of everything that would flow between two nodes.
            state: what flows: KV that is carried over, prompts while the new stages serve, or weights.
        """


@dataclass(frozen=True, slots=True)
class Question:
    """What a guard is asked of a pipeline; as the arguments of `Guard.judge`."""

    old: tuple[str, ...]
    new: tuple[str, ...]
    transfers: tuple[tuple[str, str], ...]
    state: State


def questions(before: Layout | None, after: Layout, here: str) -> tuple[Question, ...]:
    """Return what has to be allowed for `after` to serve, coming from `before`.

    That is the KV of layers that change their node, and then prompts on the way from stage to stage.

    Args:
        before: the layout that serves; None when no KV is carried over from it.
        after: the layout that shall serve.
        here: the name of the head's own machine.
    """

    def named(node: str) -> str:
        return here if node == LOCAL_NODE else node

    def ways(pairs: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
        found = ((named(source), named(target)) for source, target in pairs)
        return tuple(dict.fromkeys((source, target) for source, target in found if source != target))

    new = tuple(sorted(map(named, after.nodes)))
    asked = []
    if before is not None and (moved := before.moved_layers(after)):
        copied = ways((before.node_of(layer), after.node_of(layer)) for layer in moved)
        asked.append(Question(tuple(sorted(map(named, before.nodes))), new, copied, "kv"))
    chain = [stage.node for stage in after.stages]
    asked.append(Question((), new, ways(itertools.pairwise(chain)), "prompts"))
    return tuple(asked)


class Permission:
    """Asks a guard on behalf of one pipeline, and waits no longer than `answer_s` seconds. Thread-safe.

    Args:
        guard: is asked, on threads of its own.
        pipeline: name of the pipeline.
        here: name of the head's own machine among nodes.
        answer_s: seconds after which no answer is a refusal.

    """

    def __init__(self, guard: Guard, pipeline: str, here: str, answer_s: float = ANSWER_S) -> None:
        self._guard, self._pipeline, self._here, self._answer_s = guard, pipeline, here, answer_s
        self._lock = threading.Lock()
        self._begun: dict[tuple[Question, ...], tuple[float, Future[Ruling]]] = {}

    def begin(self, before: Layout | None, after: Layout) -> None:
        """Require that a change is allowed, without waiting: asked again in a moment, there is a ruling.

        Raises:
            GuardAsked: there is no ruling yet.
            ChangeForbidden, GuardSilent: it is not allowed; as `require`.
        """
        asked = questions(before, after, self._here)
        now = time.monotonic()
        with self._lock:
            self._begun = {each: begun for each, begun in self._begun.items() if now - begun[0] < _FRESH_S}
            if asked not in self._begun:
                self._begun[asked] = now, self._ask(asked)
            since, answer = self._begun[asked]
            if not answer.done() and now - since < self._answer_s:
                raise GuardAsked("the guard of the intents is being asked; ask again in a moment")
            del self._begun[asked]
        self._read(asked, answer, 0.0)

    def require(self, before: Layout | None, after: Layout, patience_s: float = 0.0) -> None:
        """Require that it is allowed to serve `after`, coming from `before` (see `questions`). Waits for the ruling.

        A guard that does not answer is asked again for `patience_s` seconds.

        Raises:
            ChangeForbidden: an intent forbids it; the message is the reason.
            GuardSilent: the guard cannot be reached, or does not answer.
        """
        asked = questions(before, after, self._here)
        deadline = time.monotonic() + patience_s
        while True:
            try:
                self._read(asked, self._ask(asked), self._answer_s)
            except GuardSilent:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(_ASK_AGAIN_S)
            else:
                return

    def require_node(self, node: str) -> None:
        """Require that a node may have weights of this pipeline; raises as `require`."""
        asked = (Question((), (node,), (), "weights"),)
        self._read(asked, self._ask(asked), self._answer_s)

    def _ask(self, asked: Sequence[Question]) -> Future[Ruling]:
        answer: Future[Ruling] = Future()

        def ask() -> None:
            try:
                answer.set_result(self._judge(asked))
            except Exception as error:  # noqa: BLE001 - whatever goes wrong there, nothing is allowed
                answer.set_result(Ruling(allowed=False, reason=f"{type(error).__name__}: {error}", known=False))

        # Not of a pool: one that hangs must neither hold up the next question nor the end of this process.
        threading.Thread(target=ask, name="guard", daemon=True).start()
        return answer

    def _judge(self, asked: Sequence[Question]) -> Ruling:
        """Return the first refusal, or the permission."""
        ruling = Ruling(allowed=False, reason="nothing was asked", known=False)
        for each in asked:
            ruling = self._guard.judge(self._pipeline, each.old, each.new, each.transfers, each.state)
            if not (ruling.known and ruling.allowed):
                break
        return ruling

    def _read(self, asked: Sequence[Question], answer: Future[Ruling], wait_s: float) -> None:
        try:
            ruling = answer.result(wait_s)
        except TimeoutError:
            ruling = Ruling(allowed=False, reason=f"no answer within {self._answer_s:g} s", known=False)
        where = f"{self._pipeline} on {', '.join(asked[-1].new)}"
        if not ruling.known:
            raise GuardSilent(f"nobody allows {where}, so it is refused: {ruling.reason}")
        if not ruling.allowed:
            raise ChangeForbidden(f"the intents forbid {where}: {ruling.reason}")
