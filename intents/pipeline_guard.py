"""The transfer guard for pipelines, whose stages are workloads.

A pipeline is the workload of its name, every workload with the label `midstream.dev/pipeline: <name>` (its stages), and
every stage `<name>-stage-<i>` that an intent speaks of, also where the inventory was written before the stage was
there. What is allowed must be allowed for each of them.

Prompts that would flow from stage to stage are no transfer of state: rules about migrations do not speak of them; all
others do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from intents.model.inventory import Inventory, Workload
from intents.model.labels import NAME, PIPELINE
from intents.proof.report import Report
from intents.proof.transfer import EVERY_STATE, TransferGuard

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intents.model.intent import PrivacyIntent, State
    from intents.proof.transfer import Transfer


class PipelineGuard(TransferGuard):
    """A transfer guard for pipelines, whose stages are workloads; see the module."""

    def __init__(self, inventory: Inventory, intents: Sequence[PrivacyIntent]) -> None:
        super().__init__(inventory, intents)
        self._known, self._active = inventory, tuple(intents)
        self._of: dict[str, _Guards] = {}

    def judge(
        self,
        workload: str,
        old_nodes: Sequence[str],
        new_nodes: Sequence[str],
        transfers: Sequence[Transfer],
        *,
        flows: Sequence[dict[str, Any]] = (),
        state: Sequence[State] = EVERY_STATE,
        version: str | None = None,
    ) -> Report:
        """Judge a pipeline's workloads, all of them; see `TransferGuard.judge`."""
        known = [each for each in self._known.workloads if workload in {each.name, each.labels.get(PIPELINE)}]
        if not known:
            return super().judge(workload, old_nodes, new_nodes, transfers, flows=flows, state=state, version=version)
        if workload not in self._of:
            self._of[workload] = self._guards(workload, known)
        guards = self._of[workload]
        ask = guards.serving.judge if set(state) == {"prompts"} else guards.moving.judge
        reports = [
            ask(name, old_nodes, new_nodes, transfers, flows=flows, state=state, version=version)
            for name in guards.workloads
        ]
        return Report(tuple(check for report in reports for check in report.checks))

    def _guards(self, pipeline: str, known: Sequence[Workload]) -> _Guards:
        """Make the guards of one pipeline: over the workloads that are known, and those that it might have."""
        whole = self._known.workload.get(pipeline)
        labels = {**({} if whole is None else whole.labels), PIPELINE: pipeline}
        stage = re.compile(rf"{re.escape(pipeline)}-stage-[0-9]+")
        spoken_of = {
            value
            for intent in self._active
            for spec in intent.specs
            for part in spec.subjects.any_of
            for term in part.all_of
            if term.key == NAME
            for value in term.values
            if stage.fullmatch(value)
        }
        there = {each.name for each in self._known.workloads}
        made = [
            Workload(name=name, labels=labels) for name in sorted({pipeline, f"{pipeline}-stage-0", *spoken_of} - there)
        ]
        inventory = Inventory(
            metadata=self._known.metadata,
            version=self._known.version,
            nodes=self._known.nodes,
            workloads=(*self._known.workloads, *made),
            switches=self._known.switches,
            links=self._known.links,
        )
        return _Guards(
            tuple(each.name for each in (*known, *made)),
            TransferGuard(inventory, self._active),
            TransferGuard(inventory, [_without_transfer_rules(intent) for intent in self._active]),
        )


@dataclass(frozen=True, slots=True)
class _Guards:
    """Whom a pipeline consists of, and who judges its migrations and what it serves."""

    workloads: tuple[str, ...]
    moving: TransferGuard
    serving: TransferGuard


def _without_transfer_rules(intent: PrivacyIntent) -> PrivacyIntent:
    specs = tuple(spec.model_copy(update={"transfer": ()}) for spec in intent.specs)
    return intent.model_copy(update={"specs": specs})
