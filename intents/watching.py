"""What the drift loop looks at and changes when a user watches: an inventory file, live switches and a cluster.

Labels and topology come from the file, which is read at every look; whether a link is up also from the switches at its
ends, and where replicas run from the cluster, as far as they are known. A plan that holds no more is made anew and
enforced; where there is none, what failed is taken away: flow rules, and pods where they must not be.

Where the stages of a running pipeline are, its head says. Once they are where an intent forbids it, their layers are
moved (`intents.mover`): routes are planned before, so that there are ways, and after, for where the stages are then.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from intents.enforcement.kubernetes_inventory import read_cluster
from intents.errors import InventoryError
from intents.live_midstream import HeadAway, merged, with_stages
from intents.model.addressing import addressing
from intents.model.inventory import read_inventory
from intents.mover import enforced_and_moved, still_there
from intents.planning import plan_all
from intents.proof.closing import flows_that_stay, workloads_to_evict
from intents.proof.drift import Changed, ChangeKind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from intents.live_midstream import RunningPipeline
    from intents.model.intent import PrivacyIntent
    from intents.model.inventory import Inventory
    from intents.mover import Mover
    from intents.proof.drift import Violated
    from intents.proof.observed import Observed
    from intents.proof.report import Check
    from intents.store import IntentStore
    from intents.targets import Targets

_log = logging.getLogger(__name__)
_PORT_EVENTS = {"port_down": ChangeKind.LINK_FAILED, "port_up": ChangeKind.LINK_RESTORED}


@dataclass
class Watched:
    """The world of the drift loop (`intents.proof.drift_loop.World`).

    Attributes:
        path: The inventory file.
        store: Has the active intents.
        targets: What is looked at and changed.
        tell: Takes each violation.
        sleep: Waits between two looks where no switch tells of changes.
        ask_head: Reads the running pipeline; None: the file has all workloads.
        mover: Moves its layers off nodes that they must leave; None: that is only told.
    """

    path: Path
    store: IntentStore
    targets: Targets
    tell: Callable[[Violated], None]
    sleep: Callable[[float], None] = time.sleep
    ask_head: Callable[[], RunningPipeline] | None = None
    mover: Mover | None = None
    _last_event: int = field(default=0, init=False)
    _running: RunningPipeline | None = field(default=None, init=False)

    def intents(self) -> Sequence[PrivacyIntent]:
        """Return the active intents."""
        return self.store.active()

    def inventory(self) -> Inventory:
        """Return the file's inventory, with links down that a switch at one of their ends calls down.

        The stages of the running pipeline are in it. A head that is away moves nothing: they count where they were.
        """
        inventory = with_live_links(read_inventory(self.path), self.targets.ports())
        if self.ask_head is not None:
            try:
                self._running = self.ask_head()
            except HeadAway as error:
                if self._running is None:
                    _log.warning("nothing is known of the pipeline: %s", error)
        return inventory if self._running is None else merged(inventory, [self._running])

    def observe(self) -> Observed:
        """Read what runs and what is installed."""
        inventory = self.inventory()
        return with_stages(self.targets.observe(inventory), inventory, self._running)

    def replan(self) -> bool:
        """Enforce what the active intents come to now; False: they cannot be met, or not be proven."""
        return enforced_and_moved(self._enforce_plan, self.mover, self._look)

    def _look(self) -> tuple[Observed, Sequence[PrivacyIntent], RunningPipeline | None]:
        return self.observe(), self.intents(), self._running

    def _enforce_plan(self) -> bool:
        with self.store.locked():
            plan = plan_all(self.store.active(), self.inventory())
            if plan.compiled is None:
                return False
            self.targets.restore(plan.compiled)
        return True

    def close(self, checks: Sequence[Check]) -> None:
        """Take away flow rules and replicas that these checks failed for; all that forwards, if nothing can be read.

        Raises:
            EnforcementError: stages of a running pipeline are where they must not be, which nothing here can end.
        """
        try:
            inventory = self.inventory()
        except InventoryError:
            self.targets.replace_flows(flows_that_stay(checks, {}, self.targets.flows()))
            raise
        given = addressing(inventory)
        addresses = {**given.node_ip, **given.workload_ip}
        self.targets.replace_flows(flows_that_stay(checks, addresses, self.targets.flows()))
        cluster = self.targets.cluster
        if cluster is not None:
            pods = read_cluster(cluster, inventory).pods
            for workload in workloads_to_evict(checks, pods):
                for namespace, pod in pods[workload]:
                    cluster.evict(namespace, pod)
        still_there(self._running, checks)

    def violated(self, violated: Violated) -> None:
        """Tell that an intent does not hold."""
        self.tell(violated)

    def wait(self, most_s: float) -> list[Changed]:
        """Wait until a switch tells of a port, or for so long."""
        if not self.targets.tells_of_ports:
            self.sleep(most_s)
            return []
        happened = self.targets.events(self._last_event, most_s)
        self._last_event = max((each["number"] for each in happened), default=self._last_event)
        return [
            Changed(time.monotonic(), _PORT_EVENTS[each["kind"]], f"{each['device']}/{each['port']}")
            for each in happened
            if each["kind"] in _PORT_EVENTS
        ]


def with_live_links(inventory: Inventory, ports: Mapping[str, Mapping[int, bool]]) -> Inventory:
    """Return the inventory with links down whose port is down at one end; what no switch tells of stays as it is."""
    given = addressing(inventory)
    down = {
        index
        for index, (link, (a, b)) in enumerate(zip(inventory.links, given.link_ports, strict=True))
        if not (ports.get(given.device[link.a], {}).get(a, True) and ports.get(given.device[link.b], {}).get(b, True))
    }
    if not down:
        return inventory
    document = inventory.model_dump()
    for index in down:
        document["links"][index]["up"] = False
    document["version"] = f"{inventory.version}-without-{'-'.join(map(str, sorted(down)))}"
    return type(inventory).model_validate(document)
