"""Whether a node, or the switches and links of a path, satisfy what a rule asks, and if not, why.

Only what is proven counts: an element that lacks a label which decides the matter does not satisfy the rule, and the
reason names the label. Verdicts are kept, so that a switch is judged once for each rule, not once for each packet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from intents.model import labels
from intents.proof import words

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from intents.model.inventory import Inventory
    from intents.model.predicate import Known, Predicate

_Key = TypeVar("_Key")


class NodeLimit:
    """What a rule asks of nodes."""

    def __init__(self, inventory: Inventory, asked: Predicate) -> None:
        self._inventory = inventory
        self._asked = asked

    def why_not(self, name: str) -> str | None:
        """Return why this node is not proven to satisfy the rule; None: it is."""
        node = self._inventory.node.get(name)
        if node is None:
            return f"node {name} is not in the inventory"
        verdict = self._asked.holds(name, node.labels)
        return _explain(f"node {name}", self._asked, verdict, [node.labels])


class PathLimit:
    """What a rule asks of every switch and every link of a path.

    Args:
        inventory: The switches and links.
        switches: What each switch must satisfy; None: nothing.
        links: What each link must satisfy; None: nothing.
        min_bandwidth_mbps: What each link must have; None: nothing.
    """

    def __init__(
        self,
        inventory: Inventory,
        switches: Predicate | None,
        links: Predicate | None,
        min_bandwidth_mbps: float | None = None,
    ) -> None:
        self._inventory = inventory
        self._switches = switches
        self._links = links
        self._min_bandwidth_mbps = min_bandwidth_mbps
        self._switch_verdicts: dict[str, str | None] = {}
        self._link_verdicts: dict[int, str | None] = {}

    def why_not(self, switches: Sequence[str], links: Sequence[int]) -> str | None:
        """Return the first thing on this path that is not proven to satisfy the rule; None: everything is."""
        for name in switches:
            verdict = _kept(self._switch_verdicts, name, self._judge_switch)
            if verdict is not None:
                return verdict
        for index in links:
            verdict = _kept(self._link_verdicts, index, self._judge_link)
            if verdict is not None:
                return verdict
        return None

    def _judge_switch(self, name: str) -> str | None:
        if self._switches is None:
            return None
        switch = self._inventory.switch.get(name)
        if switch is None:
            return f"switch {name} is not in the inventory"
        return _explain(f"switch {name}", self._switches, self._switches.holds(name, switch.labels), [switch.labels])

    def _judge_link(self, index: int) -> str | None:
        link = self._inventory.links[index]
        if self._min_bandwidth_mbps is not None and link.bandwidth_mbps < self._min_bandwidth_mbps:
            return f"link {link.name} has {link.bandwidth_mbps:g} Mbit/s"
        if self._links is None:
            return None
        ends = (self._inventory.switch[link.a].labels, self._inventory.switch[link.b].labels)
        verdict = self._links.holds_for_link(link.name, link.labels, ends)
        return _explain(f"link {link.name}", self._links, verdict, [link.labels])


def _kept(verdicts: dict[_Key, str | None], key: _Key, judge: Callable[[_Key], str | None]) -> str | None:
    if key not in verdicts:
        verdicts[key] = judge(key)
    return verdicts[key]


def _explain(who: str, asked: Predicate, verdict: Known, carried: Sequence[Mapping[str, str]]) -> str | None:
    if verdict:
        return None
    if verdict is False:
        has = {key: each[key] for each in carried for key in sorted(asked.keys()) if key in each}
        shown = ", ".join(f"{key.removeprefix('midstream.dev/')} {value}" for key, value in has.items())
        return f"{who} is not one where {words.predicate(asked)}" + (f" (it has {shown})" if shown else "")
    missing = sorted(key for key in asked.keys() - {labels.NAME} if not any(key in each for each in carried))
    return f"{who} lacks the label {', '.join(missing)}, so nothing is proven about it"
