"""C |= I: whether what runs and what is installed satisfies the intents.

Independent of whoever compiled them: replicas count where they really run, and routes are found by walking every
relevant packet through the installed flow tables, switch by switch. Unknown labels, rules that match nothing, states
that lack something and snapshots that are out of date all fail.

What is checked is IPv4 traffic that the inventory's switches forward; other protocols are expected to be dropped for
want of a rule (the switches fail secure), and traffic within a node is judged by NetworkPolicies only where an
isolation rule asks for it. A transfer rule is about a moment that a snapshot does not show: the check names what it
speaks of, and `intents.proof.transfer` judges each transfer before it starts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from intents.proof import words
from intents.proof.journeys import Cuts, RouteChecks, check_isolation
from intents.proof.observed import Observed
from intents.proof.report import Check, Report
from intents.proof.residence import check_placement, check_spread

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from intents.model.intent import IntentSpec, PrivacyIntent
    from intents.proof.report import Kind

__all__ = ["Check", "Observed", "Report", "check"]


def check(intents: Sequence[PrivacyIntent], observed: Observed) -> Report:
    """Judge a state by all of these intents together.

    Returns:
        A report with the state's own checks (current, readable) and those of each rule. Without an intent it is empty,
        and an empty report does not hold.
    """
    if not intents:
        return Report(())
    checks = [*_of_the_state(observed)]
    cuts = Cuts(observed, intents)
    for intent in intents:
        for spec in intent.specs:
            checks += _of_spec(observed, intent.metadata.name, spec, cuts)
    return Report(tuple(checks))


def _of_the_state(observed: Observed) -> Iterator[Check]:
    current = observed.inventory.version
    holds = observed.version == current
    said = f"read at version {observed.version}; the snapshot is at {current}"
    yield Check("snapshot", "is current", (observed.version, current), holds, said, breach=not holds)
    unreadable = observed.network.tables.unreadable
    looked_at = (f"{len(observed.flows)} flow rules",)
    said = "; ".join(unreadable[:3]) or "every flow rule was read"
    yield Check("flow rules", "can be read", looked_at, not unreadable, said, breach=bool(unreadable))
    gone = sorted(
        f"{workload} on {node}"
        for workload, nodes in observed.placement.items()
        for node in nodes
        if node not in observed.inventory.node
    )
    looked_at = (f"{len(observed.placement)} workloads",)
    said = f"not in the inventory: {', '.join(gone[:5])}" if gone else "every node that something runs on is known"
    yield Check("placement", "is on known nodes", looked_at, not gone, said, breach=bool(gone))


def _of_spec(observed: Observed, intent: str, spec: IntentSpec, cuts: Cuts) -> Iterator[Check]:
    subjects = observed.subjects(spec.subjects)
    if not subjects:
        who = words.predicate(spec.subjects)
        reason = "no workload matches: the intent says nothing"
        yield Check(who, "is about some workload", (), False, reason, intent, kind="subjects")
        return
    if not any(observed.expected_to_run(name) for name in subjects):
        reason = "none of the subjects runs or should run"
        yield Check(
            ", ".join(subjects), "is about something that runs", tuple(subjects), False, reason, intent, kind="subjects"
        )
        return
    made: list[tuple[Kind, Iterable[Check]]] = [
        *(("placement", check_placement(observed, intent, subjects, each)) for each in spec.placement),
        *(("spread", check_spread(observed, intent, subjects, each)) for each in spec.spread),
        *(("routes", RouteChecks(observed, intent, subjects, each, cuts).run()) for each in spec.routes),
        *(("isolation", check_isolation(observed, intent, subjects, each)) for each in spec.isolation),
    ]
    for kind, checks in made:
        for each in checks:
            yield replace(each, kind=kind)
    for transfer in spec.transfer:
        looked_at = tuple(f"{name} on {node}" for name in subjects for node in observed.nodes_of(name))
        said = "a snapshot shows no transfer; each one is judged before it starts"
        yield Check(
            ", ".join(subjects), words.transfer(transfer), looked_at, bool(looked_at), said, intent, kind="transfer"
        )
