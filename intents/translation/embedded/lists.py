"""Kinds of noun phrases, and when two of them stand in one list."""

from __future__ import annotations

from dataclasses import replace

from intents.translation.embedded.senses import Classes, Named, PartOfName, Valued
from intents.translation.embedded.tree import Everything, Group, Join, Minus, Not, Said, Selector

WORKLOADS = frozenset({"workload", "generic", "data"})


def bare_kind(selector: Selector) -> str | None:
    """Return the kind that mentions without a noun speak of: `workload`, `node`, ...; None: a place or a property."""
    if isinstance(selector, Join):
        of_parts = {bare_kind(part) for part in selector.parts}
        return of_parts.pop() if len(of_parts) == 1 else None
    if isinstance(selector, Not):
        return bare_kind(selector.part)
    if isinstance(selector, Minus):
        return bare_kind(selector.base)
    if isinstance(selector, Everything):
        return None
    senses = selector.mention.senses
    named = [sense for sense in senses if isinstance(sense, Named) and (not sense.plain or selector.mention.quoted)]
    if named:
        kinds_named = {kind for kind, _ in named[0].elements}
        return str(kinds_named.pop()) if len(kinds_named) == 1 else None
    kinds: set[str] = set()
    for sense in senses:
        if isinstance(sense, Valued):
            kinds |= {kind for kind, _, _ in sense.where}
        elif isinstance(sense, Classes):
            kinds |= {"workload" if each.group == "data" else "node" for each in sense.readings}
        elif isinstance(sense, PartOfName):
            kinds.add("workload")
        elif not isinstance(sense, Named):
            kinds.add("node")
    return "workload" if kinds == {"workload"} else None


def merge(groups: tuple[Group, ...], group: Group, how: str, *, own: bool) -> tuple[Group, ...] | None:
    """Add a group to a list; None where the two cannot stand in one list."""
    last = groups[-1]
    if group.kind == "pronoun" or last.kind == "pronoun":
        return (
            (*groups, group) if group.kind in WORKLOADS | {"pronoun"} and last.kind in WORKLOADS | {"pronoun"} else None
        )
    if (last.kind or "").startswith("topology") or (group.kind or "").startswith("topology"):
        return None
    workloads = WORKLOADS | {"traffic"}
    if (last.kind in workloads) != (group.kind in workloads):
        return None
    if group.quantifier not in {"", last.quantifier, "all", "any"} or last.quantifier in {"least", "bad", "counted"}:
        return None
    if (last.kind or "").startswith("state") and (group.kind or "").startswith("state"):  # "its KV cache and weights"
        owner = group.ends or last.ends
        return (
            *(each if each.ends is not None else replace(each, ends=owner) for each in groups),
            replace(group, ends=owner),
        )
    if last.ends is not None or group.ends is not None:
        return (*groups, group)
    if {last.kind, group.kind} == {"node", "switch"} or {last.kind, group.kind} == {"switch", "link"}:
        if isinstance(last.selector, Everything) and last.quantifier in {"", "none"}:  # "nodes or switches in Austria"
            return (*groups[:-1], replace(last, selector=group.selector), group)
        return (*groups, group)
    same = group.kind == last.kind
    if (last.kind is None) != (group.kind is None):
        if not (own and last.kind is None and group.kind in {"node", "switch", "link"}):
            return None
        same = True
    if (group.kind in WORKLOADS and last.kind in WORKLOADS) or same:
        kind = last.kind or group.kind
        if group.kind == "data" and last.kind in {"workload", "generic"}:
            kind = "workload"
        selectors = _parts(last.selector, how) + _parts(group.selector, how)
        # What has a noun of its own is a set: "edge nodes and German nodes" are two sets, not two conditions.
        two_sets = last.kind is not None and group.kind is not None
        joined = Join("or" if two_sets and kind in WORKLOADS else (how or "and"), selectors)
        merged = replace(last, last=group.last, kind=kind, selector=joined, singular=last.singular and group.singular)
        return (*groups[:-1], merged)
    return (*groups, group)


def _parts(selector: Selector, how: str) -> tuple[Selector, ...]:
    return selector.parts if isinstance(selector, Join) and selector.how == (how or "and") else (selector,)


def flat(selector: Selector, how: str = "all") -> tuple[Selector, ...]:
    """Return the parts of a join of this sort, or the selector alone."""
    return selector.parts if isinstance(selector, Join) and selector.how == how else (selector,)


def limited(group: Group, selector: Selector) -> Group:
    """Add a condition to a group."""
    if isinstance(group.selector, Everything):
        return replace(group, selector=selector)
    return replace(group, selector=Join("all", (*flat(group.selector), selector)))


def may_take(base: Group, taken: Group) -> bool:
    """Whether an exception can be taken from this group."""
    if taken.quantifier in {"none", "bad", "least", "counted"} or taken.ends is not None:
        return False
    if base.kind in WORKLOADS:
        return taken.kind in WORKLOADS
    if isinstance(base.selector, Said) and all(isinstance(each, Named) for each in base.selector.mention.senses):
        return False  # "via s1 but never via s2": nothing can be taken from one element
    return taken.kind is None or taken.kind == base.kind or (base.kind is None and taken.kind == "node")
