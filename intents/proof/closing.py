"""What failing closed takes away: the flow rules and replicas that failed checks are about.

Taken away is what forwards; rules that drop stay. A rule goes if it may carry packets of an end of a failed check, so
also if it leaves an end open. A check about the state as a whole (it is out of date, it cannot be read) puts everything
in doubt: every rule that forwards goes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from intents.proof.report import Check


def flows_that_stay(
    checks: Sequence[Check], addresses: Mapping[str, str], flows: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return the flow rules that need not be taken away for these failed checks.

    Args:
        checks: What failed.
        addresses: IPv4 address by name of workload and node.
        flows: ONOS flow rules.
    """
    ends: set[str] = set()
    for each in checks:
        if each.kind in {"placement", "spread", "transfer"}:
            continue  # closed by taking replicas away
        known = {addresses[name] for name in _names(each) if name in addresses}
        if not known:
            return [flow for flow in flows if not _forwards(flow)]
        ends |= known
    return [flow for flow in flows if not (_forwards(flow) and ends and _may_carry(flow, ends))]


def workloads_to_evict(checks: Iterable[Check], workloads: Iterable[str]) -> list[str]:
    """Return the workloads whose replicas run where, or beside whom, they must not."""
    known = set(workloads)
    wrong = [name for each in checks if each.breach and each.kind in {"placement", "spread"} for name in _names(each)]
    return [name for name in dict.fromkeys(wrong) if name in known]


def _names(check: Check) -> list[str]:
    return [part.strip() for side in check.subject.split("->") for part in side.split(",")]


def _forwards(flow: Mapping[str, Any]) -> bool:
    treatment = flow.get("treatment") or {}
    given = [*(treatment.get("instructions") or ()), *(treatment.get("deferred") or ())]
    return any(each.get("type") != "NOACTION" for each in given)


def _may_carry(flow: Mapping[str, Any], ends: set[str]) -> bool:
    criteria = (flow.get("selector") or {}).get("criteria") or ()
    given = {each["type"]: each["ip"] for each in criteria if each["type"] in {"IPV4_SRC", "IPV4_DST"}}
    if len(given) < 2 or any(not text.endswith("/32") for text in given.values()):
        return True
    return any(text.removesuffix("/32") in ends for text in given.values())
