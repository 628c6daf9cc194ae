"""What Kubernetes makes of the manifests: schemas, scheduling, admission, network policies."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings

from intents.compilation import Compiled, compile_intents
from intents.compilation.kubernetes import is_fragment
from intents.model import labels
from intents.model.intent import IsolationRule, PlacementRule, PrivacyIntent, RouteRule, SpreadRule
from intents.model.inventory import Inventory, Workload, parse_inventory
from intents.model.predicate import both, either, named, term
from tests.unit.intents.compilation import oracle
from tests.unit.intents.compilation.cluster import (
    Manifest,
    admits,
    bare_pod,
    binding,
    of_kind,
    pod,
    refusals,
    schedulable,
)
from tests.unit.intents.compilation.worlds import World, intent, worlds

thorough = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
WORKLOAD = "midstream.dev/workload"
HEALTH = term(labels.DATA, "health")
EU = term(labels.JURISDICTION, "DE", "FR")
TRUSTED = term(labels.TRUST, "trusted")
INVENTORY = parse_inventory("""
nodes:
- {name: n1, switch: s1, labels: {midstream.dev/jurisdiction: DE-BY, midstream.dev/trust: Trusted}}
- {name: n2, switch: s1, labels: {midstream.dev/jurisdiction: FR, midstream.dev/trust: trusted}}
- {name: n3, switch: s2, labels: {midstream.dev/jurisdiction: US, midstream.dev/trust: trusted}}
- {name: n4, switch: s2, labels: {midstream.dev/trust: trusted}}
workloads:
- {name: api, node: n3, labels: {midstream.dev/data: health}}
- {name: db, node: n2, namespace: data, labels: {midstream.dev/data: health}}
- {name: api-gateway, node: n3, labels: {midstream.dev/data: public}}
- {name: "Über web", node: n3, labels: {midstream.dev/data: public}}
switches: [{name: s1}, {name: s2}]
links: [{a: s1, b: s2}]
""")


def compiled(*intents: PrivacyIntent, inventory: Inventory = INVENTORY) -> Compiled:
    result = compile_intents(inventory, intents)
    assert isinstance(result, Compiled), result
    return result


def fragment(result: Compiled, name: str) -> Manifest:
    (found,) = (each for each in of_kind(result.kubernetes, "Deployment") if each["metadata"]["name"] == name)
    return found


def policies(result: Compiled) -> list[Manifest]:
    return of_kind(result.kubernetes, "ValidatingAdmissionPolicy")


def _valid(manifest: Manifest) -> None:
    kubernetes_validate = pytest.importorskip(
        "kubernetes_validate", reason="Kubernetes' schemas are not here; pip install kubernetes-validate"
    )
    manifest = copy.deepcopy(manifest)
    if is_fragment(manifest):  # applied to the Deployment that somebody else owns
        manifest["spec"]["selector"] = {"matchLabels": {"app": "x"}}
        manifest["spec"]["template"]["metadata"]["labels"]["app"] = "x"
        manifest["spec"]["template"].setdefault("spec", {})["containers"] = [{"name": "x", "image": "x"}]
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


class TestObjects:
    def test_they_fit_kubernetes_schemas(self) -> None:
        result = compiled(
            intent(
                "eu",
                subjects=HEALTH,
                placement=(PlacementRule(nodes=EU), PlacementRule(nodes=named("n1"), strength="preferred")),
                spread=(
                    SpreadRule(relation="apart", others=HEALTH),
                    SpreadRule(relation="together", others=HEALTH, topology="zone", strength="preferred"),
                ),
                isolation=(IsolationRule(peers=term(labels.DATA, "public")),),
            )
        )
        kinds = {each["kind"] for each in result.kubernetes}
        assert kinds == {
            "ValidatingAdmissionPolicy",
            "ValidatingAdmissionPolicyBinding",
            "NetworkPolicy",
            "Deployment",
        }
        for manifest in result.kubernetes:
            _valid(manifest)
            assert manifest["metadata"]["labels"]["midstream.dev/intent"] == "eu"

    def test_names_that_kubernetes_does_not_take_are_replaced(self) -> None:
        web = "Über web"
        result = compiled(intent("x", subjects=named(web), placement=(PlacementRule(nodes=TRUSTED),)))
        (found,) = of_kind(result.kubernetes, "Deployment")
        value = found["spec"]["template"]["metadata"]["labels"][WORKLOAD]
        assert found["metadata"]["name"] == value
        assert value.startswith("ber-web-")
        _valid(found)

    @thorough
    @given(worlds())
    def test_random_ones_fit_too(self, world: World) -> None:
        result = compile_intents(*world)
        assume(isinstance(result, Compiled))
        for manifest in result.kubernetes[:6]:
            _valid(manifest)


class TestAffinity:
    def test_it_lists_the_values_that_occur_and_meet_the_rule(self) -> None:
        result = compiled(intent("x", subjects=HEALTH, placement=(PlacementRule(nodes=both(EU, TRUSTED)),)))
        affinity = fragment(result, "api")["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]
        assert affinity["requiredDuringSchedulingIgnoredDuringExecution"] == {
            "nodeSelectorTerms": [
                {
                    "matchExpressions": [
                        {"key": labels.JURISDICTION, "operator": "In", "values": ["DE-BY", "FR"]},
                        {"key": labels.TRUST, "operator": "In", "values": ["Trusted", "trusted"]},
                    ]
                }
            ]
        }

    def test_avoiding_a_value_does_not_allow_nodes_without_the_label(self) -> None:
        avoid = term(labels.JURISDICTION, "US", op="not_in")
        result = compiled(intent("x", subjects=HEALTH, placement=(PlacementRule(nodes=avoid),)))
        assert schedulable(pod(fragment(result, "api"), "p")["spec"], INVENTORY.nodes) == {"n1", "n2"}

    def test_either_of_two_becomes_two_terms(self) -> None:
        result = compiled(intent("x", subjects=HEALTH, placement=(PlacementRule(nodes=either(EU, named("n4"))),)))
        assert schedulable(pod(fragment(result, "api"), "p")["spec"], INVENTORY.nodes) == {"n1", "n2", "n4"}

    def test_a_wish_becomes_a_preference(self) -> None:
        rule = PlacementRule(nodes=EU, strength="preferred")
        affinity = fragment(compiled(intent("x", subjects=HEALTH, placement=(rule,))), "api")
        affinity = affinity["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]
        assert list(affinity) == ["preferredDuringSchedulingIgnoredDuringExecution"]

    def test_at_least_one_binds_as_many_as_it_asks_for(self) -> None:
        rule = PlacementRule(nodes=named("n4"), at_least=1)
        result = compiled(intent("x", subjects=HEALTH, placement=(rule,)))
        bound = [
            name
            for name in ("api", "db")
            if schedulable(pod(fragment(result, name), "p")["spec"], INVENTORY.nodes) == {"n4"}
        ]
        assert len(bound) == 1

    def test_nodes_without_the_label_that_spreading_compares_are_left_out(self) -> None:
        apart = SpreadRule(relation="apart", others=HEALTH, topology="jurisdiction")
        result = compiled(intent("x", subjects=HEALTH, spread=(apart,)))
        assert schedulable(pod(fragment(result, "api"), "p")["spec"], INVENTORY.nodes) == {"n1", "n2", "n3"}

    @thorough
    @given(worlds())
    def test_pods_can_be_scheduled_to_exactly_the_allowed_nodes(self, world: World) -> None:
        inventory, intents = world
        result = compile_intents(inventory, intents)
        assume(isinstance(result, Compiled))
        spreads = any(rule.topology != "node" for spec in oracle.specs(intents) for rule in spec.spread)
        counts = any(rule.at_least for spec in oracle.specs(intents) for rule in spec.placement)
        for placement in result.placements:
            found = schedulable(pod(fragment(result, placement.workload), "p")["spec"], inventory.nodes)
            assert placement.node in found
            assert found <= set(placement.allowed_nodes)
            if not spreads and not counts:
                assert found == set(placement.allowed_nodes)


class TestAdmission:
    """The policies' expressions, evaluated."""

    EU_INTENT = intent("eu", subjects=HEALTH, placement=(PlacementRule(nodes=EU),))

    def test_a_pod_with_the_affinity_is_admitted(self) -> None:
        result = compiled(self.EU_INTENT)
        assert refusals(policies(result), pod(fragment(result, "api"), "api-1")) == []

    @pytest.mark.parametrize("by", [{WORKLOAD: "api"}, {labels.DATA: "health"}, {labels.DATA: "Health"}])
    def test_a_pod_without_it_is_refused(self, by: dict[str, str]) -> None:
        (message,) = refusals(policies(compiled(self.EU_INTENT)), bare_pod("p", by))
        assert "need a required node affinity" in message

    @pytest.mark.parametrize("by", [{}, {WORKLOAD: "api-gateway"}, {labels.DATA: "public"}])
    def test_other_pods_are_none_of_its_business(self, by: dict[str, str]) -> None:
        assert refusals(policies(compiled(self.EU_INTENT)), bare_pod("p", by)) == []

    def test_a_pod_without_labels_is_none_of_its_business(self) -> None:
        assert refusals(policies(compiled(self.EU_INTENT)), {"metadata": {"name": "p"}, "spec": {}}) == []

    @pytest.mark.parametrize(
        ("term", "admitted"),
        [
            ([("In", ["FR"])], True),
            ([("In", ["FR"]), ("Exists", None)], True),
            ([("In", ["FR", "US"])], False),
            ([("NotIn", ["US"])], False),
            ([("Exists", None)], False),
        ],
    )
    def test_an_affinity_of_ones_own_must_narrow_it(self, term: list[Any], admitted: bool) -> None:
        expressions = [
            {"key": labels.JURISDICTION, "operator": operator, **({"values": values} if values else {})}
            for operator, values in term
        ]
        own = bare_pod("p", {WORKLOAD: "api"}, affinity=_required({"matchExpressions": expressions}))
        assert (refusals(policies(compiled(self.EU_INTENT)), own) == []) is admitted

    def test_one_of_several_terms_that_is_wider_is_enough_to_be_refused(self) -> None:
        fine = {"matchExpressions": [{"key": labels.JURISDICTION, "operator": "In", "values": ["FR"]}]}
        wide = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n3"]}]}
        own = bare_pod("p", {WORKLOAD: "api"}, affinity=_required(fine, wide))
        assert refusals(policies(compiled(self.EU_INTENT)), own)

    @pytest.mark.parametrize(("node", "admitted"), [("n1", True), ("n3", False), ("n4", False)])
    def test_a_node_that_the_pod_names_must_be_allowed(self, node: str, admitted: bool) -> None:
        result = compiled(self.EU_INTENT)
        own = pod(fragment(result, "api"), "p", nodeName=node)
        assert (refusals(policies(result), own) == []) is admitted

    @pytest.mark.parametrize(
        ("name", "node", "admitted"),
        [
            ("api-7c9f-x2", "n1", True),
            ("api-7c9f-x2", "n3", False),
            ("db-0", "n4", False),
            ("api-gateway-5f-z9", "n3", True),
            ("apiary", "n3", True),
        ],
    )
    def test_a_binding_to_a_forbidden_node_is_refused(self, name: str, node: str, admitted: bool) -> None:
        assert (refusals(policies(compiled(self.EU_INTENT)), binding(name, node)) == []) is admitted

    def test_a_pod_that_was_there_before_can_still_be_updated(self) -> None:
        before = bare_pod("p", {WORKLOAD: "api"}, nodeName="n3")
        assert refusals(policies(compiled(self.EU_INTENT)), before, "UPDATE", old=before) == []

    def test_a_pod_cannot_become_a_subject_where_it_must_not_run(self) -> None:
        before, after = bare_pod("p", {}, nodeName="n3"), bare_pod("p", {labels.DATA: "health"}, nodeName="n3")
        assert refusals(policies(compiled(self.EU_INTENT)), after, "UPDATE", old=before)

    @pytest.mark.parametrize(
        ("where", "subject"), [("GB", True), ("UK", True), ("gbr", True), ("GB-ENG", True), ("GBX", False)]
    )
    def test_spellings_of_a_jurisdiction_are_known(self, where: str, subject: bool) -> None:
        own = intent(
            "x", subjects=either(named("api"), term(labels.JURISDICTION, "UK")), placement=(PlacementRule(nodes=EU),)
        )
        assert bool(refusals(policies(compiled(own)), bare_pod("p", {labels.JURISDICTION: where}))) is subject

    @pytest.mark.parametrize("relation", ["apart", "together"])
    def test_pods_that_leave_out_the_pod_affinity_are_refused(self, relation: Any) -> None:
        result = compiled(intent("x", subjects=HEALTH, spread=(SpreadRule(relation=relation, others=HEALTH),)))
        full = pod(fragment(result, "api"), "api-1")
        assert refusals(policies(result), full) == []
        for kind in full["spec"]["affinity"]:
            without = copy.deepcopy(full)
            del without["spec"]["affinity"][kind]
            assert refusals(policies(result), without)
        (found,) = (full["spec"]["affinity"][kind] for kind in full["spec"]["affinity"] if kind.startswith("pod"))
        narrower = copy.deepcopy(full)
        (one,) = found["requiredDuringSchedulingIgnoredDuringExecution"]
        one["labelSelector"]["matchExpressions"][0]["values"] = ["nobody"]
        assert refusals(policies(result), {**narrower, "spec": full["spec"]})

    def test_an_intent_without_nodes_in_it_has_no_policy(self) -> None:
        assert (
            policies(compiled(intent("x", subjects=HEALTH, isolation=(IsolationRule(peers=named("api-gateway")),))))
            == []
        )

    @thorough
    @given(worlds())
    def test_what_the_fragments_make_is_admitted_and_bare_pods_are_not(self, world: World) -> None:
        inventory, intents = world
        result = compile_intents(inventory, intents)
        assume(isinstance(result, Compiled))
        for placement in result.placements:
            name = placement.workload
            full = pod(fragment(result, name), f"{name}-1")
            assert refusals(policies(result), full) == []
            assert refusals(policies(result), pod(fragment(result, name), "p", nodeName=placement.node)) == []
            assert refusals(policies(result), binding(f"{name}-1", placement.node)) == []
            constrained = "nodeAffinity" in full["spec"].get("affinity", {}) and any(
                "required" in key for key in full["spec"]["affinity"]["nodeAffinity"]
            )
            assert bool(refusals(policies(result), bare_pod("p", full["metadata"]["labels"]))) >= constrained
            for node in set(inventory.node) - set(placement.allowed_nodes):
                assert refusals(policies(result), binding(f"{name}-1", node))


def _required(*terms: Manifest) -> Manifest:
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": list(terms)}}}


class TestNetworkPolicies:
    def test_two_intents_that_each_forbid_one_peer_forbid_both(self) -> None:
        result = compiled(
            intent("a", subjects=named("api"), isolation=(IsolationRule(peers=named("db")),)),
            intent("b", subjects=named("api"), isolation=(IsolationRule(peers=named("api-gateway")),)),
        )
        (policy,) = of_kind(result.kubernetes, "NetworkPolicy")
        assert policy["metadata"]["annotations"] == {"midstream.dev/intents": "a,b"}
        assert not admits([policy], INVENTORY, "api", "db")
        assert not admits([policy], INVENTORY, "api-gateway", "api")
        assert admits([policy], INVENTORY, "api", "api")

    def test_one_direction_leaves_the_other(self) -> None:
        rule = IsolationRule(peers=named("db"), direction="to_subjects")
        (policy,) = of_kind(compiled(intent("a", subjects=named("api"), isolation=(rule,))).kubernetes, "NetworkPolicy")
        assert policy["spec"]["policyTypes"] == ["Ingress"]
        assert not admits([policy], INVENTORY, "db", "api")
        assert admits([policy], INVENTORY, "api", "db")

    def test_what_the_network_cuts_off_the_policy_does_too(self) -> None:
        inventory = parse_inventory("""
        nodes: [{name: n1, switch: s1}, {name: n2, switch: s2}, {name: n3, switch: s1}]
        workloads: [{name: a, node: n1}, {name: b, node: n2}, {name: c, node: n3}]
        switches: [{name: s1, labels: {trust: high}}, {name: s2}]
        links: [{a: s1, b: s2}]
        """)
        stay = PlacementRule(nodes=named("n1"))
        rule = RouteRule(switches=term("trust", "high"))
        result = compiled(intent("x", subjects=named("a"), placement=(stay,), routes=(rule,)), inventory=inventory)
        found = of_kind(result.kubernetes, "NetworkPolicy")
        assert result.blocked == (("a", "b"), ("b", "a"))
        assert [admits(found, inventory, *pair) for pair in (("a", "b"), ("b", "a"), ("a", "c"))] == [
            False,
            False,
            True,
        ]

    @thorough
    @given(worlds())
    def test_they_forbid_exactly_the_pairs_that_are_cut_off(self, world: World) -> None:
        inventory, intents = world
        result = compile_intents(inventory, intents)
        assume(isinstance(result, Compiled))
        found = of_kind(result.kubernetes, "NetworkPolicy")
        for source in inventory.workload:
            for target in inventory.workload:
                assert admits(found, inventory, source, target) is ((source, target) not in result.blocked)


OF_LLM = {labels.PIPELINE: "llm", labels.DATA: "health"}


class TestPipelines:
    """Stages go where their pipeline's head puts them: no object of Kubernetes' can say so."""

    AWAY = (Workload(name="llm", node="n1", labels=OF_LLM),)
    RUNNING = (
        Workload(name="llm-stage-0", node="n1", labels=OF_LLM),
        Workload(name="llm-stage-1", node="n3", labels=OF_LLM),
        Workload(name="llm-stage-2", replicas=0, labels={labels.DATA: "health"}),
    )
    EU_INTENT = intent("eu", subjects=HEALTH, placement=(PlacementRule(nodes=EU),))
    LLM_INTENT = intent("x", subjects=term(labels.PIPELINE, "llm"), placement=(PlacementRule(nodes=EU),))

    @staticmethod
    def together(*workloads: Workload) -> Inventory:
        return Inventory.model_validate(INVENTORY.model_dump() | {"workloads": [*INVENTORY.workloads, *workloads]})

    @pytest.mark.parametrize("pipeline", [RUNNING, AWAY])
    def test_they_are_placed_and_have_no_objects(self, pipeline: tuple[Workload, ...]) -> None:
        result = compiled(self.LLM_INTENT, inventory=self.together(*pipeline))
        placed = {each.workload: each.node for each in result.placements}
        assert placed.keys() == {each.name for each in pipeline if labels.PIPELINE in each.labels}
        assert set(placed.values()) <= {"n1", "n2"}
        assert result.kubernetes == ()

    @pytest.mark.parametrize("pipeline", [RUNNING, AWAY])
    def test_other_workloads_of_the_intent_have_theirs_as_ever(self, pipeline: tuple[Workload, ...]) -> None:
        alone, beside = compiled(self.EU_INTENT), compiled(self.EU_INTENT, inventory=self.together(*pipeline))
        assert beside.kubernetes == alone.kubernetes
        assert {each.name for each in pipeline} < {each.workload for each in beside.placements}

    def test_their_pods_are_admitted_wherever_they_are_put(self) -> None:
        subjects = either(named("api", "llm-stage-0"), term(labels.PIPELINE, "llm"))
        mixed = intent("x", subjects=subjects, placement=(PlacementRule(nodes=EU),))
        result = compiled(mixed, inventory=self.together(*self.RUNNING))
        function = {labels.PIPELINE: "llm", "midstream.dev/role": "function"}
        assert refusals(policies(result), bare_pod("llm-stage-0-00001-a", function)) == []
        assert refusals(policies(result), binding("llm-stage-0-00001-a", "n3")) == []
        assert refusals(policies(result), binding("api-1", "n3"))

    def test_a_pod_that_says_what_data_it_has_is_held_to_that(self) -> None:
        only_stages = intent("x", subjects=both(HEALTH, term("team", "llm")), placement=(PlacementRule(nodes=EU),))
        stage = Workload(name="llm-stage-0", node="n1", labels={**OF_LLM, "team": "llm"})
        result = compiled(only_stages, inventory=self.together(stage))
        assert {each["kind"] for each in result.kubernetes} == {
            "ValidatingAdmissionPolicy",
            "ValidatingAdmissionPolicyBinding",
        }
        assert refusals(policies(result), bare_pod("new", {labels.DATA: "health", "team": "llm"}))
        assert refusals(policies(result), bare_pod("new", {labels.DATA: "health"})) == []
        assert refusals(policies(result), binding("new", "n3")) == []

    def test_network_policies_are_for_the_others(self) -> None:
        apart = intent("x", subjects=named("api", "llm-stage-0"), isolation=(IsolationRule(peers=named("db")),))
        result = compiled(apart, inventory=self.together(*self.RUNNING))
        assert ("llm-stage-0", "db") in result.blocked
        (policy,) = of_kind(result.kubernetes, "NetworkPolicy")
        assert policy["metadata"]["name"] == "midstream-api"


class TestHostileNames:
    """Names and values come from files and clusters: they are data in every expression, never part of it."""

    @pytest.mark.parametrize(
        "value", ['x"] || true || "" in ["', "x\\", "x'] || true", "x\n|| true", "ü\U0001f600", "\x7f"]
    )
    def test_a_value_cannot_end_the_expression_that_it_is_in(self, value: str) -> None:
        inventory = Inventory.model_validate(
            {
                "nodes": [
                    {"name": "n1", "labels": {"tier": value}},
                    {"name": f"n2{value}", "labels": {"tier": "other"}},
                ],
                "workloads": [{"name": value, "labels": {"kind": value}}, {"name": "w"}],
            }
        )
        result = compiled(
            intent("x", subjects=term("kind", value), placement=(PlacementRule(nodes=term("tier", value)),)),
            inventory=inventory,
        )
        assert refusals(policies(result), bare_pod("p", {"kind": value}))
        assert refusals(policies(result), bare_pod("p", {"kind": "x"})) == []
        assert refusals(policies(result), binding(f"{result.kubernetes[-1]['metadata']['name']}-1", "n2"))
        for manifest in result.kubernetes:
            _valid(manifest)
