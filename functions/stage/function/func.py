"""One stage of a pipeline as a function: it comes with its layers and leaves them with the stages beside it.

The layers are computed by the pipeline's own stage processes, with weights and KV that belong to the node. The function
says whether a stage is wanted: it attaches when it starts, and instead of dying it releases its stage, which is a live
change of the pipeline that no stream notices. In between, ``stage.release`` and ``stage.prepare`` do the same by event.

* A function may start before the head: it attaches in the background, as often as it takes, and is ready from then on.
* A function that was released by event stays ready, because it has to hear when it shall come back.
* Calls to the head are made one after the other, so that they take effect in the order of what was asked for.
* `stop` has the drain time, from the signal on. While another change is under way it asks again; what the head refuses
  for good (there is no other stage) and a head that is not there are said in the log, and the function goes.

* What is asked for by event carries the event's key: replayed, it is answered as before and moves nothing.
* Of two instances for one stage (a rolling update), the one that attached last holds it: the older one goes without it.
"""

from __future__ import annotations

import enum
import hashlib
import logging
import os
import re
import secrets
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from runtime.events.catalogue import StageReport, Type
from runtime.events.envelope import make
from runtime.events.from_journal import source_of
from runtime.head.control_client import ControlClient, ControlError
from runtime.head.event_function import (
    EventFunction,
    Refused,
    Settings,
    SettingsError,
    TryAgain,
    making_sense,
    read_settings,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.events.envelope import Event

_DRAIN_S = 25.0  # Knative's default is 30
_LEAST_DRAIN_S = 1.0
_MOST_DRAIN_S = 50.0  # func-python's server gives up on `stop` after 60 s
_FIRST_PAUSE_S = 0.2
_MOST_PAUSE_S = 5.0
_AGAIN_S = 0.2
_ANSWER_S = 0.5  # from the head's last word to the end
_HEAD_BACK_S = 3.0  # how much of the drain time a head that cannot be reached is given
_FINAL = frozenset({"forbidden", "invalid", "last_stage"})
_FOR_A_WHILE = frozenset({"busy", "late", "asleep"})
_NODE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
_log = logging.getLogger(__name__)


def new() -> Stage:
    """Return the function's instance; func-python calls this once."""
    logging.getLogger("httpx").setLevel(logging.WARNING)  # one line per request to the head otherwise
    try:
        return Stage(read_stage_settings(os.environ))
    except SettingsError as error:
        raise SystemExit(str(error)) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSettings(Settings):
    """What this function is told.

    Attributes:
        stage: index in the layout that was asked for last.
        node: where the stage shall be; None to leave it where it is.
        drain_s: seconds from the signal to the end.
        attach_s: seconds that one attempt to attach may take.

    """

    stage: int
    node: str | None = None
    drain_s: float = _DRAIN_S
    attach_s: float = 10.0


def read_stage_settings(environment: Mapping[str, str]) -> StageSettings:
    """Return what the environment says.

    Raises:
        SettingsError: something is missing or makes no sense.

    """
    common = read_settings(environment)
    stage = environment.get("MIDSTREAM_STAGE", "")
    if re.fullmatch("[0-9]{1,6}", stage) is None:
        raise SettingsError(f"MIDSTREAM_STAGE is {stage!r}; it must be the index of a stage, from 0")
    node = environment.get("MIDSTREAM_NODE") or None
    if node is not None and _NODE.fullmatch(node) is None:
        raise SettingsError(f"MIDSTREAM_NODE is {node!r}, which is no name for a node; write, for example, edge-1")
    drain = environment.get("MIDSTREAM_DRAIN_SECONDS") or str(_DRAIN_S)
    try:
        drain_s = float(drain)
    except ValueError:
        drain_s = 0.0
    if not _LEAST_DRAIN_S <= drain_s <= _MOST_DRAIN_S:
        raise SettingsError(
            f"MIDSTREAM_DRAIN_SECONDS is {drain!r}; it must be a number from {_LEAST_DRAIN_S:g} to {_MOST_DRAIN_S:g}"
        )
    return StageSettings(
        pipeline=common.pipeline, endpoint=common.endpoint, stage=int(stage), node=node, drain_s=drain_s
    )


class Standing(enum.Enum):
    """Where the function is with its stage."""

    COMING = "not attached yet"
    ATTACHED = "attached"
    RELEASED = "released"


class Stage(EventFunction):
    """Takes ``dev.midstream.stage.prepare`` and ``.release`` for one stage."""

    def __init__(self, settings: StageSettings) -> None:
        super().__init__(settings.pipeline, [Type.STAGE_PREPARE, Type.STAGE_RELEASE])
        self._settings = settings
        self._name = f"stage {settings.stage} of {settings.pipeline}"
        self._instance = secrets.token_hex(8)
        self._turn = threading.Lock()  # held around each call to the head
        self._standing = Standing.COMING
        self._hindrance = "the head has not answered yet"
        self._broken: str | None = None
        self._deadline: float | None = None

    def start(self, cfg: Mapping[str, str]) -> None:
        """Begin to attach."""
        super().start(cfg)
        threading.Thread(target=self._come, name="attach", daemon=True).start()

    def end(self) -> None:
        """The drain time begins with the first call."""
        if self._deadline is None:
            self._deadline = time.monotonic() + self._settings.drain_s
        super().end()

    def stop(self) -> None:
        """Release the stage within the drain time. Never raises."""
        self.end()
        deadline = self._deadline or time.monotonic()
        # A thread, because a head that hangs must not hold this function longer than it may stay.
        leaving = threading.Thread(target=self._leave, args=(deadline,), name="release", daemon=True)
        leaving.start()
        leaving.join(max(0.0, deadline - time.monotonic()))
        if leaving.is_alive():
            _log.warning("%s: no word from the head within %g s; leaving", self._name, self._settings.drain_s)

    def alive(self) -> tuple[bool, str]:
        """Whether this process can go on; a head that is away is no reason to end it."""
        return (True, "alive") if self._broken is None else (False, self._broken)

    def ready(self) -> tuple[bool, str]:
        """Whether the stage is this function's to give: attached, or released by event."""
        if self.ending.is_set():
            return False, "ending"
        if self._standing is Standing.COMING:
            return False, f"{Standing.COMING.value}: {self._hindrance}"
        return True, self._standing.value

    def concerns(self, event: Event) -> bool:
        """Whether an event is for this stage."""
        return bool(event.data["stage"] == self._settings.stage)

    def answer(self, event: Event) -> Event:
        """Attach or release the stage, and tell what the head says of it."""
        prepare = event.type is Type.STAGE_PREPARE
        with self._turn:
            if self.ending.is_set():
                raise TryAgain("this function is ending", "ending")
            try:
                if prepare:
                    moved = self._attach(event.data.get("node"), event.key)
                else:
                    moved = self._release(self._settings.drain_s, event.key)
            except ControlError as error:
                if error.refused and error.kind in _FINAL:
                    raise Refused(error) from error
                raise TryAgain.because(error) from error
            self._standing = Standing.ATTACHED if prepare else Standing.RELEASED
        with making_sense():
            return _told(event, prepare, moved)

    def _attach(self, node: str | None, key: str | None = None) -> dict[str, Any]:
        with ControlClient(self._settings.endpoint) as head:
            within_s = self._settings.attach_s
            return head.attach_stage(self._settings.stage, node, within_s, holder=self._instance, key=key)

    def _release(self, within_s: float, key: str | None = None) -> dict[str, Any]:
        # By event the stage is released whoever holds it.
        holder = None if key else self._instance
        with ControlClient(self._settings.endpoint) as head:
            return head.release_stage(self._settings.stage, within_s, holder=holder, key=key)

    def _come(self) -> None:
        """Attach, as often as it takes, unless an event was carried out first."""
        pause_s = _FIRST_PAUSE_S
        try:
            while not self.ending.is_set():
                with self._turn:
                    if self._standing is not Standing.COMING or self._attached():
                        return
                self.ending.wait(pause_s)
                pause_s = min(2 * pause_s, _MOST_PAUSE_S)
        except Exception as error:  # noqa: BLE001 - `alive` tells
            self._broken = f"cannot attach any more: {error!r}"
            _log.exception("%s: cannot attach any more", self._name)

    def _attached(self) -> bool:
        try:
            moved = self._attach(self._settings.node)
        except ControlError as error:
            if str(error) != self._hindrance:
                self._hindrance = str(error)
                _log.warning("%s: not attached yet, trying again: %s", self._name, error)
            return False
        self._standing = Standing.RELEASED if moved.get("state") == "released" else Standing.ATTACHED
        _log.info("%s: %s", self._name, self._standing.value)
        return True

    def _leave(self, deadline: float) -> None:
        """Release the stage before the deadline, and say in the log what became of it."""
        head_back_by = time.monotonic() + _HEAD_BACK_S
        hindrance = "the head was still busy with what was asked of it before"
        try:
            while self._turn.acquire(timeout=max(0.0, deadline - time.monotonic())):
                try:
                    left_s = deadline - time.monotonic() - _ANSWER_S
                    if left_s <= 0:
                        break
                    moved = self._release(left_s)
                except ControlError as error:
                    hindrance = str(error)
                    unreachable = not error.refused and error.kind is None
                    if error.kind not in _FOR_A_WHILE and not (unreachable and time.monotonic() < head_back_by):
                        break
                else:
                    self._standing = Standing.RELEASED
                    _log.info("%s: %s in %s ms", self._name, moved.get("state"), moved.get("ms"))
                    return
                finally:
                    self._turn.release()
                time.sleep(_AGAIN_S)
            _log.warning("%s: leaving without being released: %s", self._name, hindrance)
        except Exception:  # noqa: BLE001 - the function goes in any case
            _log.exception("%s: leaving without being released", self._name)


class _Change(msgspec.Struct, frozen=True):
    """What is needed of a change's report."""

    id: str
    boot: str


class _Moved(msgspec.Struct, frozen=True):
    """The head's answer to an attach or a release; `change` is None when none was needed."""

    stage: int
    node: str
    ms: float
    change: _Change | None


def _told(event: Event, prepare: bool, answer: dict[str, Any]) -> Event:
    """Make the event that tells of a stage, as the head makes it when there was a change."""
    moved = msgspec.convert(answer, _Moved)
    done = "prepared" if prepare else "released"
    pipeline = event.data["pipeline"]
    data = StageReport(
        pipeline=pipeline,
        stage=moved.stage,
        node=moved.node,
        change=moved.change.id if moved.change else None,
        ms=moved.ms,
    )
    if moved.change:
        identity = f"{moved.change.boot}.{moved.change.id}.stage-{moved.stage}.{done}"
    else:
        identity = f"request-{hashlib.sha256(event.key.encode()).hexdigest()[:32]}.{done}"
    return make(
        Type.STAGE_PREPARED if prepare else Type.STAGE_RELEASED,
        source_of(pipeline),
        pipeline,
        msgspec.to_builtins(data),
        id=identity,
    )
