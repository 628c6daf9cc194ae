"""A typed intent in plain words: what the user confirms before anything is enforced.

The words come from the intent alone, never from the translator that made it: whatever a sentence or a language model
said, this is what will hold. A list of codes that knowledge has a name for is called by it, with the codes behind it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intents.model import labels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from intents.model.intent import (
        IntentSpec,
        IsolationRule,
        PlacementRule,
        PrivacyIntent,
        RouteRule,
        SpreadRule,
        TransferRule,
    )
    from intents.model.predicate import Conjunction, Predicate, Term

    Naming = Callable[[str, tuple[str, ...]], str | None]
    """Given a label and values: the name that people have for them together, such as "the EU"; None without one."""

_LABEL_NAMES = {
    labels.NAME: "name",
    labels.REGION: "region",
    labels.ZONE: "zone",
    labels.TIER: "tier",
    labels.JURISDICTION: "jurisdiction",
    labels.TRUST: "trust",
    labels.PROVIDER: "provider",
    labels.CONFIDENTIAL: "confidential",
    labels.GPU: "gpu",
    labels.DATA: "data class",
    labels.ENCRYPTED: "encrypted",
}
_STATE_NAMES = {"prompts": "prompts", "kv": "KV cache", "weights": "weights"}


def read_back(intent: PrivacyIntent, naming: Naming = lambda _key, _values: None) -> tuple[str, ...]:
    """Return one sentence for each rule of the intent."""
    return tuple(sentence for spec in intent.specs for sentence in _Words(naming).spec(spec))


class _Words:
    def __init__(self, naming: Naming) -> None:
        self._naming = naming

    def spec(self, spec: IntentSpec) -> Iterator[str]:
        subjects = self.things("workload", spec.subjects)
        for placement in spec.placement:
            yield self._placement(subjects, placement)
        for spread in spec.spread:
            yield self._spread(subjects, spread)
        for route in spec.routes:
            yield self._route(subjects, route)
        for isolation in spec.isolation:
            yield self._isolation(subjects, isolation)
        for transfer in spec.transfer:
            yield self._transfer(subjects, transfer)

    def _placement(self, subjects: str, rule: PlacementRule) -> str:
        who = subjects if rule.at_least is None else f"at least {rule.at_least} of the {_plural(subjects)}"
        return f"{_sentence(who)} {_must(rule.strength)} run on {self.things('node', rule.nodes)}."

    def _spread(self, subjects: str, rule: SpreadRule) -> str:
        others = self.things("other workload", rule.others)
        verb = "share no" if rule.relation == "apart" else "share one"
        return f"{_sentence(subjects)} {_must(rule.strength)} {verb} {rule.topology} with {others}."

    def _route(self, subjects: str, rule: RouteRule) -> str:
        if rule.peers is None:
            whose = f"packets between {subjects} and whatever they talk to"
        else:
            peers = self.things("workload or node", rule.peers)
            whose = {
                "both": f"packets between {subjects} and {peers}",
                "from_subjects": f"packets from {subjects} to {peers}",
                "to_subjects": f"packets from {peers} to {subjects}",
            }[rule.direction]
        limits = []
        if rule.switches is not None:
            limits.append(f"cross only {self.things('switch', rule.switches)}")
        if rule.links is not None:
            limits.append(f"cross only {self.things('link', rule.links)}")
        limits += [f"pass at least one {self.things('switch', point, every=False)}" for point in rule.through]
        if rule.max_latency_ms is not None:
            limits.append(f"take at most {rule.max_latency_ms:g} ms")
        if rule.min_bandwidth_mbps is not None:
            limits.append(f"use only links of at least {rule.min_bandwidth_mbps:g} Mbit/s")
        rest = (
            ""
            if rule.peers is not None or rule.strength == "preferred"
            else " Whoever cannot be reached so is cut off."
        )
        return f"{_sentence(whose)} {_must(rule.strength)} {', and '.join(limits)}.{rest}"

    def _isolation(self, subjects: str, rule: IsolationRule) -> str:
        peers = self.things("workload or node", rule.peers)
        ways = {
            "both": f"No packet passes between {subjects} and {peers}",
            "from_subjects": f"No packet passes from {subjects} to {peers}",
            "to_subjects": f"No packet passes from {peers} to {subjects}",
        }
        return f"{ways[rule.direction]}."

    def _transfer(self, subjects: str, rule: TransferRule) -> str:
        state = _listed([_STATE_NAMES[each] for each in rule.state], "and")
        if rule.forbidden:
            return f"{_sentence(state)} of {subjects} must never be migrated."
        limits = [
            f"only {self.things(kind, predicate)}"
            for kind, predicate in (("node", rule.nodes), ("switch", rule.switches), ("link", rule.links))
            if predicate is not None
        ]
        return f"A migration of the {state} of {subjects} must touch {', and '.join(limits)}."

    def things(self, kind: str, predicate: Predicate, *, every: bool = True) -> str:
        """Return a noun phrase for the elements that satisfy the predicate."""
        if not predicate.any_of:
            return f"no {kind}"
        parts = [self._conjunction(part) for part in predicate.any_of]
        if "" in parts:
            return f"any {kind}" if every else kind
        noun = _plural(kind) if every else kind
        return f"{noun} whose {', or whose '.join(parts)}"

    def _conjunction(self, part: Conjunction) -> str:
        return " and whose ".join(self._term(each) for each in part.all_of)

    def _term(self, term: Term) -> str:
        key = _LABEL_NAMES.get(term.key, f"label {term.key}")
        codes = _listed(term.values, "or")
        name = self._naming(term.key, term.values)
        values = codes if name is None else f"in {name} ({codes})"
        if term.op == "in":
            return f"{key} is {values}"
        return f"{key} is known and not {values}"


def _must(strength: str) -> str:
    return "must" if strength == "required" else "should, where it is possible,"


def _listed(values: Iterable[str], word: str) -> str:
    *most, last = values
    return f"{', '.join(most)} {word} {last}" if most else last


def _plural(noun: str) -> str:
    first, _, rest = noun.partition(" whose ")
    plurals = {"switch": "switches", "workload or node": "workloads or nodes"}
    many = plurals.get(first, first if first.endswith("s") else f"{first}s")
    return f"{many} whose {rest}" if rest else many


def _sentence(words: str) -> str:
    return words[0].upper() + words[1:]
