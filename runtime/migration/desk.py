"""Where changes are asked for: repeated requests, late requests, and stages that come and go.

The coordinator runs one change at a time and knows nothing of who wants it. Requests come from people, from objects
that are applied, and from events that are delivered at least once and in any order, so the desk keeps

* **keys**: a request that comes again with its key gets the same change (or the same refusal) again. Forgotten is what
  was not decided, and the coming or going of a stage that was aborted: it may be asked for again;
* **generations**: what an older generation of an object wants is refused once a newer one was accepted;
* **stages that are away**: the function of a stage can leave (its layers go to the stages beside it) and come back,
  perhaps on another node. Stages are numbered as in the layout that was asked for last, so a stage keeps its number
  while others are away. Of two instances of one function, the one that came last holds the stage: the older one can
  leave without taking it along. A stage that was released by a request with a key stays away until it is attached by
  one: that its function starts anew does not bring it back.

A request that was accepted takes effect here only when its change is committed. All of it is in memory: after a start
of the server, keys and generations begin anew.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar, cast

from runtime.layout import LOCAL_NODE, LayoutError
from runtime.migration.coordinator import Change, Move
from runtime.migration.errors import (
    ChangeBusy,
    ChangeRefused,
    ChangeSuperseded,
    ChangeUnneeded,
    LastStage,
    NotNow,
)
from runtime.migration.protocol import Fallback, Method, Step

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.layout import Layout
    from runtime.migration.coordinator import Coordinator

_Key = tuple[str, str]  # what was asked for, and the request's own key
_Answer = TypeVar("_Answer", bound="Change | None")
_KEPT_KEYS = 4096
_NOBODY = ""


@dataclass(frozen=True, slots=True)
class Order:
    """A request for a layout, or a precision of the weights; what is not given stays as it is.

    `key` names the request, `generation` counts the states of the object behind it.
    """

    layers: str = ""
    method: Method = Method.PRE_COPY
    fallback: Fallback = Fallback.ABORT
    key: str | None = None
    generation: int | None = None
    traceparent: str | None = None
    precision: str | None = None


@dataclass(frozen=True, slots=True)
class _Roster:
    """The layout that was asked for, and which of its stages are away."""

    wanted: Layout
    away: frozenset[int] = frozenset()
    sent_away: frozenset[int] = frozenset()  # of these: by a request with a key

    def effective(self) -> Layout:
        return self.wanted.without_stages(self.away)


class Desk:
    """Takes requests for a coordinator's changes. Thread-safe.

    Args:
        coordinator: runs the changes.
        serving: tells the layout that serves now.
        usable: makes a layout do without nodes that are lost.
        wake: called before a change is asked for; raises PipelineAsleep when none can be made now.

    """

    def __init__(
        self,
        coordinator: Coordinator,
        serving: Callable[[], Layout],
        usable: Callable[[Layout], Layout],
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self._coordinator = coordinator
        self._serving = serving
        self._usable = usable
        self._wake = wake
        self._lock = threading.RLock()
        self._answers: OrderedDict[_Key, Change | ChangeRefused | None] = OrderedDict()
        self._holders: dict[int, str] = {}  # by stage: the instance of its function that came last, or _NOBODY
        self._generation = 0
        self._settled = _Roster(serving())
        self._pending: tuple[Change, _Roster] | None = None

    def reconfigure(self, order: Order) -> tuple[Change, bool]:
        """Start the change that `order` wants; returns it, and whether the order was known already.

        Raises:
            ChangeBusy, NotNow: not now; the order is not remembered, ask again.
            ChangeSuperseded, ChangeUnneeded, ChangeRefused: see there; nothing was touched.

        """
        with self._lock:
            key = _key("reconfigure", order.key)
            repeated = key in self._answers
            return self._once(key, lambda: self._start(order)), repeated

    def attach(
        self, stage: int, node: str | None = None, *, holder: str | None = None, key: str | None = None
    ) -> Change | None:
        """The function of a stage is there: give it its layers, on `node` if told. None when it has them already.

        `holder` names the function's instance; asked again with the same `key`, nothing happens.

        Raises:
            ChangeBusy, NotNow: not now; ask again.
            ChangeRefused, LayoutError: there is no such stage, or it cannot be placed there.

        """
        with self._lock:
            return self._once(_key("attach", key), lambda: self._attach(stage, node, holder, by_key=key is not None))

    def release(self, stage: int, *, holder: str | None = None, key: str | None = None) -> Change | None:
        """The function of a stage leaves: give its layers to the stages beside it.

        None when it has none, or when `holder` is not the instance that came last. With a `key`, as `attach`.

        Raises:
            ChangeBusy, NotNow: not now; ask again.
            LastStage: it is the only one.
            ChangeRefused: the others cannot take its layers.

        """
        with self._lock:
            return self._once(_key("release", key), lambda: self._release(stage, holder, by_key=key is not None))

    def wanted(self) -> Layout:
        """Return the layout that was asked for last, of which some stages may be away."""
        with self._lock:
            self._settle()
            return (self._pending[1] if self._pending else self._settled).wanted

    def node_of(self, stage: int) -> str:
        """Return the node of a stage, as it was asked for; this host for one that does not exist."""
        stages = self.wanted().stages
        return stages[stage].node if stage < len(stages) else LOCAL_NODE

    def is_away(self, stage: int) -> bool:
        """Whether a stage of the layout that was asked for last is away."""
        with self._lock:
            self._settle()
            return stage in (self._pending[1] if self._pending else self._settled).away

    @property
    def generation(self) -> int:
        """The highest generation that was accepted; 0 without any."""
        return self._generation

    def _attach(self, stage: int, node: str | None, holder: str | None, *, by_key: bool) -> Change | None:
        roster = self._roster()
        if stage >= len(roster.wanted):
            raise ChangeRefused(
                f"there is no stage {stage}: the layout {roster.wanted} has stages 0 to {len(roster.wanted) - 1}"
            )
        if stage in roster.sent_away and not by_key:
            change = None
        else:
            wanted = roster.wanted if node is None else roster.wanted.moved_to(stage, node)
            back = _Roster(wanted, roster.away - {stage}, roster.sent_away - {stage})
            change = self._adopt(back, Move("prepared", stage, wanted.stages[stage].node))
        if holder is not None:
            self._holders[stage] = holder
        return change

    def _release(self, stage: int, holder: str | None, *, by_key: bool) -> Change | None:
        roster = self._roster()
        sent_away = roster.sent_away | {stage} if by_key else roster.sent_away
        if stage in roster.away:
            self._settled = _Roster(roster.wanted, roster.away, sent_away)
            return None
        held_by = self._holders.get(stage)
        if stage >= len(roster.wanted) or (holder is not None and held_by is not None and holder != held_by):
            return None
        away = roster.away | {stage}
        if len(away) == len(roster.wanted):
            raise LastStage(f"stage {stage} is the last one: nobody is there to take its layers")
        move = Move("released", stage, roster.wanted.stages[stage].node)
        return self._adopt(_Roster(roster.wanted, away, sent_away), move)

    def _start(self, order: Order) -> Change:
        if order.generation is not None and order.generation < self._generation:
            raise ChangeSuperseded(
                f"generation {order.generation} is older than generation {self._generation}, which was accepted before"
            )
        self._settle()
        self._wake()
        try:
            change = self._coordinator.request(
                order.layers, order.method, order.fallback, order.key, order.traceparent, precision=order.precision
            )
        except ChangeUnneeded:
            self._accept(order)
            self._install(self._roster_for(order, self._serving()))
            raise
        self._accept(order)
        self._pending = change, self._roster_for(order, change.machine.target)
        return change

    def _roster_for(self, order: Order, target: Layout) -> _Roster:
        """Return what is in force with `target`; stages that are away stay so when only the precision changes."""
        if order.layers:
            return _Roster(target)
        return replace(self._settled, wanted=self._settled.wanted.in_precision(target.precision))

    def _accept(self, order: Order) -> None:
        self._generation = max(self._generation, order.generation or 0)

    def _once(self, key: _Key | None, work: Callable[[], _Answer]) -> _Answer:
        """Do what is asked for unless it was done before with the same key; then the answer is that of before."""
        if key is None:
            return _refusing(work)
        if key in self._answers and not _may_be_asked_again(key, self._answers[key]):
            known = self._answers[key]
            if isinstance(known, ChangeRefused):
                raise type(known)(str(known))
            return cast("_Answer", known)
        try:
            answer = _refusing(work)
        except NotNow:
            raise
        except ChangeRefused as refusal:
            self._remember(key, refusal)
            raise
        self._remember(key, answer)
        return answer

    def _remember(self, key: _Key, answer: Change | ChangeRefused | None) -> None:
        self._answers[key] = answer
        while len(self._answers) > _KEPT_KEYS:
            self._answers.popitem(last=False)

    def _adopt(self, roster: _Roster, move: Move) -> Change | None:
        target = self._usable(roster.effective())
        if target == self._serving():
            self._settled = roster
            return None
        self._wake()
        change = self._coordinator.request(str(target), move=move)
        self._pending = change, roster
        return change

    def _roster(self) -> _Roster:
        self._settle()
        if self._pending is not None:
            raise ChangeBusy(self._pending[0].id)
        return self._settled

    def _settle(self) -> None:
        """Let what was asked for last be in force if its change has been committed."""
        if self._pending is not None and self._pending[0].ended_at is not None:
            change, roster = self._pending
            self._pending = None
            if change.machine.step is Step.COMMITTED:
                self._install(roster)

    def _install(self, roster: _Roster) -> None:
        """From now on this is in force. Functions of stages that there are no more hold nothing that comes later."""
        self._settled = roster
        for stage in self._holders:
            if stage >= len(roster.wanted):
                self._holders[stage] = _NOBODY


def _key(kind: str, key: str | None) -> _Key | None:
    return None if key is None else (kind, key)


def _may_be_asked_again(key: _Key, answer: Change | ChangeRefused | None) -> bool:
    """Whether a stage did not come or go because the change for it was aborted."""
    kind, _ = key
    return kind != "reconfigure" and isinstance(answer, Change) and answer.machine.step is Step.ABORTED


def _refusing(work: Callable[[], _Answer]) -> _Answer:
    """Let a layout that does not work be a refusal like others."""
    try:
        return work()
    except LayoutError as error:
        raise ChangeRefused(str(error)) from error
