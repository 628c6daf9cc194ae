"""What happens when a stage that serves is lost: another takes its place, and what was in flight is replayed.

::

    a process ends --> stage_lost --> the change under way, if any, is stopped and ended
                                  --> lost stages are replaced, the chain gets a fresh epoch   (repair)
                                  --> every batch in flight is replayed, in order              (repair)
                                  --> lost again meanwhile? once more

Weights and KV are the node's, so a replacement has them already. KV that the lost stage had written for batches in
flight is written again, with the same values; what had settled is in the pool, and the replacement checks it (I2).

Stages that are lost over and over again with the same batch are given up: the batch would end the next one too.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.migration.coordinator import Coordinator
    from runtime.migration.journal import Journal

_ATTEMPTS = 3  # with the same batch
_LOOK_AGAIN_S = 0.05
_REPAIRS = 10  # within one recovery


class Recovery:
    """Recovers from losses, one recovery at a time, on a thread of its own. Thread-safe.

    Args:
        repair: replaces the lost stages and replays; returns the sequence numbers of the replayed batches.
        is_whole: whether no serving stage is gone.
        coordinator: makes no change meanwhile.
        journal: is told what happens.
        give_up: called with the reason when the pipeline cannot be repaired.
        on_phase: called when `running` has changed.

    """

    def __init__(
        self,
        repair: Callable[[], list[int]],
        is_whole: Callable[[], bool],
        coordinator: Coordinator,
        journal: Journal,
        give_up: Callable[[str], None],
        on_phase: Callable[[], None] = lambda: None,
    ) -> None:
        self._repair, self._is_whole, self._coordinator = repair, is_whole, coordinator
        self._journal, self._give_up, self._on_phase = journal, give_up, on_phase
        self._changed = threading.Condition()
        self._lost: dict[str, str] = {}  # reasons by stage
        self._running = False
        self._count = 0
        self._oldest: int | None = None  # the batch that was replayed first the last time
        self._tries = 0
        self.last: dict[str, Any] | None = None

    @property
    def count(self) -> int:
        """How many recoveries there were."""
        return self._count

    @property
    def running(self) -> bool:
        """Whether a recovery is under way."""
        return self._running

    def stage_lost(self, name: str, reason: str) -> None:
        """Take note that a serving stage is gone; the recovery begins at once, if none is under way."""
        with self._changed:
            self._lost[name] = reason
            if not self._running:
                self._running = True
                self._on_phase()
                threading.Thread(target=self._run, name="recovery", daemon=True).start()

    def wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until `condition` holds (checked now and then); the time of a recovery does not count."""
        left = timeout_s
        while not condition():
            if left <= 0:
                return False
            time.sleep(_LOOK_AGAIN_S)
            if not self._running:
                left -= _LOOK_AGAIN_S
        return True

    def _run(self) -> None:
        recovered = True
        while recovered:
            subject = f"recovery-{self._count + 1}"
            with self._coordinator.stopped(subject, "a serving stage was lost"):
                if self._is_whole():
                    self._take_lost()  # told late of what an earlier recovery has seen by itself
                else:
                    self._count += 1
                    recovered = self._recover(subject)
            with self._changed:
                if not self._lost or not recovered:
                    self._running = False
                    self._on_phase()
                    return

    def _recover(self, subject: str) -> bool:
        """Repair until nothing is lost any more; False when that cannot be done."""
        started_at, clock = time.time(), time.perf_counter()
        stages: list[str] = []
        replayed: list[int] = []
        why = ""
        for _ in range(_REPAIRS):
            lost = self._take_lost()
            stages += lost
            for name, reason in lost.items():
                self._journal.tell(subject, "stage lost", stage=name, reason=reason)
            try:
                replayed = self._repair()
            except Exception as error:  # noqa: BLE001 - whatever goes wrong, the pipeline must say so and end
                if not self._is_whole():  # one more was lost meanwhile, or it can be done in a moment
                    why = f": {error}"
                    continue
                self._give_up(f"lost {', '.join(stages)} and could not recover: {error}")
                return False
            if self._in_vain(replayed):
                self._give_up(f"batch {replayed[0]} was lost with its stage {_ATTEMPTS} times: {', '.join(stages)}")
                return False
            if self._is_whole():
                break
        else:
            self._give_up(f"stages were lost as fast as they were replaced: {', '.join(stages)}{why}")
            return False
        total_ms = round(1e3 * (time.perf_counter() - clock), 1)
        self.last = {
            "id": subject,
            "stages": stages,
            "started_at": started_at,
            "total_ms": total_ms,
            "replayed_batches": len(replayed),
        }
        self._journal.tell(subject, "recovered", total_ms=total_ms, replayed_batches=len(replayed))
        return True

    def _take_lost(self) -> dict[str, str]:
        """Return what is lost and not repaired yet."""
        with self._changed:
            lost, self._lost = self._lost, {}
            return lost

    def _in_vain(self, replayed: list[int]) -> bool:
        """Whether the same batch was in flight every time."""
        oldest = replayed[0] if replayed else None
        self._tries = self._tries + 1 if oldest is not None and oldest == self._oldest else 1
        self._oldest = oldest
        return self._tries >= _ATTEMPTS
