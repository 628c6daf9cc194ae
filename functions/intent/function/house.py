"""The place whose intents these are: its inventory, what is active, and who enforces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from intents.live_midstream import HeadAway, merged, with_stages
from intents.model.inventory import read_inventory
from intents.planning import enforced

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from intents.compilation.compiled import Compiled
    from intents.live_midstream import RunningPipeline
    from intents.model.intent import PrivacyIntent
    from intents.model.inventory import Inventory
    from intents.proof.observed import Observed
    from intents.store import IntentStore


class Enforcer(Protocol):
    """Who makes a plan real. Every method may raise `EnforcementError`."""

    def enforce(self, new: Compiled, old: Compiled, inventory: Inventory, intents: Sequence[PrivacyIntent]) -> object:
        """Go from what is enforced to what these intents come to."""

    def observe(self, inventory: Inventory) -> Observed:
        """Return what runs and what is installed."""


class House:
    """See the module.

    Args:
        inventory: File with nodes, workloads, switches and links.
        store: The active intents.
        enforcer: Makes plans real.
        ask_head: Reads the running pipeline; None: the file has all workloads.
    """

    def __init__(
        self,
        inventory: Path,
        store: IntentStore,
        enforcer: Enforcer,
        ask_head: Callable[[], RunningPipeline] | None = None,
    ) -> None:
        self.store, self.enforcer = store, enforcer
        self._file, self._ask_head = inventory, ask_head
        self.running: RunningPipeline | None = None
        self._last: tuple[tuple[PrivacyIntent, ...], Compiled] | None = None  # by the intents that it is for

    def inventory(self) -> Inventory:
        """Return the snapshot, with the stages of the running pipeline.

        A head that is away moves nothing, so its stages count where they were last.

        Raises:
            InventoryError: the file cannot be read, or does not know where a stage runs.
        """
        snapshot = read_inventory(self._file)
        if self._ask_head is not None:
            try:
                self.running = self._ask_head()
            except HeadAway:
                if self.running is None:
                    return snapshot
        return snapshot if self.running is None else merged(snapshot, [self.running])

    def observe(self) -> Observed:
        """Read what runs and what is installed; raises IntentsError."""
        snapshot = self.inventory()
        return with_stages(self.enforcer.observe(snapshot), snapshot, self.running)

    def enforced(self, active: Sequence[PrivacyIntent], snapshot: Inventory) -> Compiled:
        """Return what is enforced for these intents; nothing, where that cannot be told: all is then told anew.

        What others have made active meanwhile, they have enforced.
        """
        if self._last is None or self._last[0] != _by_name(active):
            self._last = _by_name(active), enforced(active, snapshot)
        return self._last[1]

    def enforce(
        self, new: Compiled, snapshot: Inventory, active: Sequence[PrivacyIntent], intents: Sequence[PrivacyIntent]
    ) -> None:
        """Go from what is enforced for `active` to `new`, which `intents` come to; raises EnforcementError."""
        self.enforcer.enforce(new, self.enforced(active, snapshot), snapshot, intents)
        self._last = _by_name(intents), new


def _by_name(intents: Sequence[PrivacyIntent]) -> tuple[PrivacyIntent, ...]:
    return tuple(sorted(intents, key=lambda each: each.metadata.name))
