"""An inventory with a pipeline of two stages, and intents about it."""

from typing import Any

from intents.live_midstream import PIPELINE
from intents.model.intent import IntentMetadata, IntentSpec, PlacementRule, PrivacyIntent
from intents.model.predicate import term

INVENTORY: dict[str, Any] = {
    "kind": "Inventory",
    "nodes": [
        {"name": "edge-1", "switch": "s1", "labels": {"midstream.dev/jurisdiction": "DE"}},
        {"name": "edge-2", "switch": "s2", "labels": {"midstream.dev/jurisdiction": "US"}},
        {"name": "edge-3", "switch": "s1", "labels": {"midstream.dev/jurisdiction": "FR"}},
    ],
    "workloads": [
        {"name": "smollm-stage-0", "node": "edge-1", "labels": {PIPELINE: "smollm", "midstream.dev/data": "health"}},
        {"name": "smollm-stage-1", "node": "edge-1", "labels": {PIPELINE: "smollm"}},
        {"name": "other", "node": "edge-2"},
    ],
    "switches": [{"name": "s1"}, {"name": "s2"}],
    "links": [{"a": "s1", "b": "s2"}],
}
IN_EU = term("midstream.dev/jurisdiction", "DE", "FR")
HEALTH = term("midstream.dev/data", "health")


def intent(name: str = "eu-only", subjects: Any = HEALTH, **rules: Any) -> PrivacyIntent:
    rules = rules or {"placement": (PlacementRule(nodes=IN_EU),)}
    return PrivacyIntent(metadata=IntentMetadata(name=name), specs=(IntentSpec(subjects=subjects, **rules),))
