"""Where intents are enforced: controllers of switches, a Kubernetes cluster, and a folder for those who apply by hand.

`enforce` goes from what is enforced to what is to be in the order of `intents.compilation.difference`: at no moment
passes what neither forbids. A step that fails ends it with an error; what was done stays, it only ever forbids more
than the old state or less than the new one, and doing it again goes on from there.
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from itertools import groupby
from typing import TYPE_CHECKING, Any, Self

import yaml

from intents.compilation.difference import Enforced, Step, difference, flow_key
from intents.enforcement.kubernetes import Cluster
from intents.enforcement.kubernetes_inventory import read_cluster
from intents.enforcement.onos import OnosStore
from intents.enforcement.openflow_service import OpenFlowStore
from intents.errors import EnforcementError
from intents.proof.checker import Observed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from intents.compilation.compiled import Compiled
    from intents.enforcement.flow_store import FlowStore
    from intents.model.intent import PrivacyIntent
    from intents.model.inventory import Inventory


class Targets:
    """See the module; a context manager that closes its connections.

    Args:
        onos: Address of an ONOS controller; user and password come from the environment.
        openflow: Unix socket of the OpenFlow controller.
        kubernetes: Whether to enforce in the cluster of the current context.
        folder: Where to write `flows.json` and `manifests.yaml`.

    Raises:
        EnforcementError: one of them cannot be used.
    """

    def __init__(
        self,
        *,
        onos: str | None = None,
        openflow: Path | None = None,
        kubernetes: bool = False,
        folder: Path | None = None,
    ) -> None:
        self._open = ExitStack()
        self._switches: list[FlowStore] = []
        self._openflow: OpenFlowStore | None = None
        if onos is not None:
            self._switches.append(self._open.enter_context(OnosStore(onos, os.environ)))
        if openflow is not None:
            self._openflow = self._open.enter_context(OpenFlowStore(str(openflow)))
            self._switches.append(self._openflow)
        self.cluster = _current_cluster() if kubernetes else None
        self._folder = folder

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._open.close()

    def enforce(
        self, new: Compiled, old: Compiled, inventory: Inventory, intents: Sequence[PrivacyIntent]
    ) -> tuple[Step, ...]:
        """Go from `old` to `new`, which `intents` were compiled into; returns what was done.

        Raises:
            EnforcementError: somebody could not be told; the rest was not tried.
        """
        steps = difference(Enforced(inventory, old), Enforced(inventory, new), intents)
        installed = {flow_key(rule): dict(rule) for rule in old.flows}
        for (what, action), group in groupby(steps, key=lambda step: (step.what, step.action)):
            bodies = [dict(step.body) for step in group]
            if what == "flow":
                self._change_flows(installed, action, bodies)
            elif self.cluster is not None:
                (self.cluster.apply if action == "add" else self.cluster.delete)(bodies)
        if not steps:  # tell switches that came late what they should have been told
            self._change_flows(installed, "add", [])
        self._write(new)
        return steps

    def restore(self, compiled: Compiled) -> None:
        """Make what is enforced be exactly this again, whatever it has become.

        Raises:
            EnforcementError: somebody could not be told.
        """
        self.replace_flows(compiled.flows)
        if self.cluster is not None:
            self.cluster.apply(compiled.kubernetes)
        self._write(compiled)

    def replace_flows(self, flows: Sequence[dict[str, Any]]) -> None:
        """Have these flow rules and no others of ours."""
        for store in self._switches:
            store.apply(flows)

    def flows(self) -> list[dict[str, Any]]:
        """Return the flow rules that are really installed."""
        return [rule for store in self._switches for rule in store.read()]

    @property
    def tells_of_ports(self) -> bool:
        """Whether `events` tells of ports that go up and down."""
        return self._openflow is not None

    def events(self, after: int, wait_s: float) -> list[dict[str, Any]]:
        """Return what the switches told after the event of that number; wait that long if nothing."""
        return self._openflow.events(after, wait_s) if self._openflow is not None else []

    def ports(self) -> Mapping[str, Mapping[int, bool]]:
        """Return whether each port is up, by device, of the switches that are connected."""
        return self._openflow.switches() if self._openflow is not None else {}

    def observe(self, inventory: Inventory, flows: Sequence[dict[str, Any]] | None = None) -> Observed:
        """Return what runs and what is installed, from the cluster and the switches as far as they are known here.

        Args:
            inventory: What is true of the rest.
            flows: Flow rules as somebody else read them, in place of the switches'.

        Raises:
            EnforcementError: somebody could not be asked.
        """
        placement: dict[str, tuple[str, ...]] = {
            each.name: (each.node,) for each in inventory.workloads if each.node is not None
        }
        manifests: list[dict[str, Any]] = []
        if self.cluster is not None:
            state = read_cluster(self.cluster, inventory)
            inventory, placement = state.inventory, dict(state.placement)
            manifests = self.cluster.installed()
        if flows is None:
            flows = self.flows()
        return Observed(placement, flows, inventory, inventory.version, manifests)

    def _change_flows(
        self, installed: dict[tuple[Any, ...], dict[str, Any]], action: str, rules: Sequence[dict[str, Any]]
    ) -> None:
        for rule in rules:
            if action == "add":
                installed[flow_key(rule)] = rule
            else:
                installed.pop(flow_key(rule), None)
        for store in self._switches:
            store.apply(list(installed.values()))

    def _write(self, new: Compiled) -> None:
        if self._folder is None:
            return
        manifests: Sequence[Mapping[str, Any]] = new.kubernetes
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / "flows.json").write_text(json.dumps({"flows": list(new.flows)}, indent=1), encoding="utf-8")
            (self._folder / "manifests.yaml").write_text(yaml.safe_dump_all(manifests), encoding="utf-8")
        except OSError as error:
            raise EnforcementError(f"{self._folder} cannot be written: {error}") from error


def _current_cluster() -> Cluster:
    try:
        from kubernetes import client, config
    except ImportError as error:
        raise EnforcementError("the Kubernetes client is not installed: pip install 'midstream[intents]'") from error
    try:
        config.load_config()  # type: ignore[no-untyped-call]
    except config.ConfigException as error:
        raise EnforcementError(f"no cluster is configured: {error}") from error
    return Cluster(client.ApiClient())
