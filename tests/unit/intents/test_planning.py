"""From a sentence to a proven plan, with the real compiler and checker and translators that say what a test wants."""

import pytest

from intents import planning
from intents.benchmark.cases import bundled_inventories
from intents.compilation.compiled import NOTHING, Compiled
from intents.model.intent import (
    IntentMetadata,
    IntentSpec,
    IsolationRule,
    PlacementRule,
    PrivacyIntent,
    RouteRule,
    intent_name,
)
from intents.model.inventory import Inventory
from intents.model.labels import DATA, JURISDICTION, TRUST
from intents.model.predicate import Predicate, both, named, opposite, term
from intents.model.refusal import Refusal, RefusalKind
from intents.planning import Plan, enforced, plan_intent, plan_sentence, same_effect
from intents.translation.interface import Translation

CLINIC = bundled_inventories()["clinic"]
HEALTH = term(DATA, "health")
GERMANY = term(JURISDICTION, "DE")
NO_US = opposite(term(JURISDICTION, "US"))
LOST = Refusal(RefusalKind.NOT_UNDERSTOOD, "which words?")


def placed(nodes: Predicate, name: str = "placed") -> PrivacyIntent:
    spec = IntentSpec(subjects=HEALTH, placement=(PlacementRule(nodes=nodes),))
    return PrivacyIntent(metadata=IntentMetadata(name=name), specs=(spec,))


def routed() -> PrivacyIntent:
    spec = IntentSpec(subjects=HEALTH, routes=(RouteRule(switches=NO_US),))
    return PrivacyIntent(metadata=IntentMetadata(name="routed"), specs=(spec,))


class Says:
    """A translator with one answer; `needs_witness` as a language model does."""

    def __init__(self, given: PrivacyIntent | Refusal, *, needs_witness: bool = False) -> None:
        self.name = "says"
        self.needs_witness = needs_witness
        self._given = given

    def translate(self, sentence: str, inventory: Inventory) -> Translation:
        if isinstance(self._given, Refusal):
            return Translation(None, self._given, tokens=5)
        return Translation(self._given, None, tokens=5)


def plan(
    given: PrivacyIntent | Refusal, *, model: bool = False, witness: PrivacyIntent | Refusal | None = None
) -> Plan:
    seen = None if witness is None else Says(witness)
    return plan_sentence("Keep it.", CLINIC, Says(given, needs_witness=model), witness=seen)


def test_a_plan_tells_where_workloads_may_run_and_that_it_is_proven():
    told = plan(placed(both(GERMANY, term(TRUST, "trusted", "certified")))).to_json()
    assert told["outcome"] == "ok"
    assert told["reason"] is None
    assert told["placement"]["triage"] == {"allowed_nodes": ["ward-1", "ward-2"], "node": "ward-1"}
    assert told["checks"]
    assert all(check["holds"] and check["looked_at"] for check in told["checks"])
    assert len(told["readback"]) == 1
    assert told["readback"][0].startswith(
        "Workloads whose data class is health must run on nodes whose jurisdiction is DE"
    )
    assert told["tokens"] == 5
    assert told["latency_ms"] > 0


def test_routes_are_paths_of_switches_and_pairs_without_one_are_cut_off():
    told = plan(routed()).to_json()
    american = {each.name for each in CLINIC.switches if each.labels.get(JURISDICTION) == "US"}
    assert told["routes"]
    assert all(not american & set(route["path"]) for route in told["routes"])
    assert {"from": "triage", "to": "kiosk"} in told["blocked"]
    assert told["flows"]


def test_a_refused_sentence_carries_its_reason_and_no_rule():
    told = plan(LOST).to_json()
    assert told["outcome"] == "refused"
    assert told["reason"] == {"kind": "not_understood", "message": "which words?", "nearest": None, "details": []}
    assert not (told["placement"])
    assert not (told["routes"])
    assert not (told["flows"])
    assert not (told["kubernetes"])
    assert not (told["checks"])


def test_what_cannot_be_met_is_refused_and_the_understood_intent_is_shown():
    told = plan(placed(term(JURISDICTION, "JP"))).to_json()
    assert told["reason"]["kind"] == "unsatisfiable"
    assert told["intent"]["specs"]
    assert told["flows"] == []


def test_active_intents_hold_together_with_the_new_one_or_it_is_refused():
    first = placed(named("ward-1"), "first")
    refused = plan_intent(placed(named("ward-2"), "second"), CLINIC, active=[first])
    assert refused.refusal is not None
    assert refused.refusal.kind is RefusalKind.CONFLICT
    assert {"first", "second"} <= set(
        " ".join((refused.refusal.message, *refused.refusal.details)).replace("'", " ").split()
    )


def test_an_intent_of_the_same_name_is_replaced_not_added():
    first = placed(named("ward-1"), "same")
    replaced = plan_intent(placed(named("ward-2"), "same"), CLINIC, active=[first])
    assert replaced.refusal is None


def test_what_the_checker_cannot_prove_is_refused(monkeypatch: pytest.MonkeyPatch):
    """As if the compiler had forgotten the rules that it should install."""
    compiled = planning.compile_intents

    def forgetful(inventory: Inventory, intents: list[PrivacyIntent]) -> Compiled | Refusal:
        made = compiled(inventory, intents)
        assert isinstance(made, Compiled)
        return Compiled(made.placements, made.routes, made.blocked)

    monkeypatch.setattr(planning, "compile_intents", forgetful)
    refusal = plan(routed()).refusal
    assert refusal is not None
    assert refusal.kind is RefusalKind.UNTRUSTED
    assert "could not be proven" in refusal.message


class TestWhatIsEnforced:
    def test_is_what_the_active_intents_come_to(self):
        made = plan_intent(routed(), CLINIC, active=[placed(GERMANY)])
        assert enforced([placed(GERMANY), routed()], CLINIC) == made.compiled

    def test_is_nothing_without_intents_and_where_they_cannot_be_met_any_more(self):
        assert enforced([], CLINIC) is NOTHING
        assert enforced([placed(GERMANY), placed(opposite(GERMANY), "elsewhere")], CLINIC) is NOTHING


def test_the_same_words_give_the_same_name():
    assert intent_name("Keep  it.") == intent_name("keep it.")
    assert intent_name("Keep it.") != intent_name("Drop it.")


class TestAWordThatIsNotEnough:
    def test_counts_when_the_witness_says_the_same(self):
        told = plan(placed(GERMANY), model=True, witness=placed(term(JURISDICTION, "DEU")))
        assert told.refusal is None
        assert not told.needs_confirmation
        assert told.intent is not None
        assert told.intent.specs[0].placement[0].nodes == term(JURISDICTION, "DEU")

    def test_is_refused_when_the_witness_understood_something_else(self):
        told = plan(placed(GERMANY), model=True, witness=placed(named("lab-1")))
        assert told.refusal is not None
        assert told.refusal.kind is RefusalKind.UNTRUSTED

    def test_waits_for_a_person_when_the_witness_did_not_understand(self):
        told = plan(placed(GERMANY), model=True, witness=LOST)
        assert told.refusal is None
        assert told.needs_confirmation
        assert told.to_json()["needs_confirmation"] is True

    @pytest.mark.parametrize("kind", [RefusalKind.OUT_OF_SCOPE, RefusalKind.AMBIGUOUS, RefusalKind.VACUOUS])
    def test_does_not_overrule_a_refusal_of_the_witness(self, kind: RefusalKind):
        told = plan(placed(GERMANY), model=True, witness=Refusal(kind, "no"))
        assert told.refusal == Refusal(kind, "no")

    def test_waits_for_a_person_when_there_is_no_witness(self):
        assert plan(placed(GERMANY), model=True).needs_confirmation

    def test_is_not_asked_of_a_translator_that_explains_itself(self):
        assert not plan(placed(GERMANY), witness=placed(named("lab-1"))).needs_confirmation


def test_two_intents_have_the_same_effect_only_if_they_allow_the_same():
    assert same_effect(placed(GERMANY), placed(GERMANY, "other"), CLINIC)
    assert not same_effect(placed(GERMANY), placed(named("ward-1")), CLINIC)
    isolated = PrivacyIntent(
        metadata=IntentMetadata(name="x"),
        specs=(IntentSpec(subjects=HEALTH, isolation=(IsolationRule(peers=named("kiosk")),)),),
    )
    assert not same_effect(placed(GERMANY), isolated, CLINIC)
