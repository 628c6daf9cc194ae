import pytest

from intents.model.intent import (
    IntentMetadata,
    IntentSpec,
    IsolationRule,
    PlacementRule,
    PrivacyIntent,
    RouteRule,
    SpreadRule,
    TransferRule,
)
from intents.model.labels import DATA, ENCRYPTED, JURISDICTION, TRUST
from intents.model.predicate import ANYTHING, NOTHING, both, either, named, opposite, term
from intents.readback import read_back

HEALTH = term(DATA, "health")
EU = term(JURISDICTION, "DE", "FR")


def words(**rules) -> str:
    spec = IntentSpec(subjects=HEALTH, **rules)
    intent = PrivacyIntent(metadata=IntentMetadata(name="x"), specs=(spec,))
    naming = {(JURISDICTION, ("DE", "FR")): "the EU"}
    return " ".join(read_back(intent, lambda key, values: naming.get((key, values))))


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        (
            {"placement": (PlacementRule(nodes=both(EU, term(TRUST, "trusted"))),)},
            (
                "Workloads whose data class is health must run on nodes whose jurisdiction is in the EU (DE or "
                "FR) and whose trust is trusted."
            ),
        ),
        (
            {"placement": (PlacementRule(nodes=either(named("n1"), term(TRUST, "trusted")), at_least=2),)},
            (
                "At least 2 of the workloads whose data class is health must run on nodes whose name is n1, or "
                "whose trust is trusted."
            ),
        ),
        (
            {"placement": (PlacementRule(nodes=NOTHING, strength="preferred"),)},
            "Workloads whose data class is health should, where it is possible, run on no node.",
        ),
        (
            {"spread": (SpreadRule(relation="apart", others=ANYTHING, topology="zone"),)},
            "Workloads whose data class is health must share no zone with any other workload.",
        ),
        (
            {"routes": (RouteRule(peers=named("db"), direction="from_subjects", through=(named("s1"),)),)},
            (
                "Packets from workloads whose data class is health to workloads or nodes whose name is db must "
                "pass at least one switch whose name is s1."
            ),
        ),
        (
            {"routes": (RouteRule(switches=opposite(term(JURISDICTION, "US")), links=term(ENCRYPTED, "true")),)},
            (
                "Packets between workloads whose data class is health and whatever they talk to must cross only "
                "switches whose jurisdiction is known and not US, and cross only links whose encrypted is true. "
                "Whoever cannot be reached so is cut off."
            ),
        ),
        (
            {"isolation": (IsolationRule(peers=named("kiosk"), direction="to_subjects"),)},
            "No packet passes from workloads or nodes whose name is kiosk to workloads whose data class is health.",
        ),
        (
            {"transfer": (TransferRule(state=("kv",), nodes=EU),)},
            (
                "A migration of the KV cache of workloads whose data class is health must touch only nodes whose"
                " jurisdiction is in the EU (DE or FR)."
            ),
        ),
        (
            {"transfer": (TransferRule(forbidden=True),)},
            "Prompts, KV cache and weights of workloads whose data class is health must never be migrated.",
        ),
    ],
)
def test_every_kind_of_rule_is_read_back_in_plain_words(rules: dict, said: str):
    assert words(**rules) == said


def test_every_rule_gets_a_sentence_of_its_own():
    said = words(placement=(PlacementRule(nodes=EU),), isolation=(IsolationRule(peers=named("kiosk")),))
    assert said.count(".") == 2
