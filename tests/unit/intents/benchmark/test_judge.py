import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intents.benchmark.cases import Case, bundled_intents, bundled_inventories, bundled_traps
from intents.benchmark.judge import Verdict, judge
from tests.unit.intents.benchmark.perfect import perfect_plan, refused

CLINIC = bundled_inventories()["clinic"]
CAMPUS = bundled_inventories()["campus"]
MET = [case for case in (*bundled_intents(), *bundled_traps()) if case.expect.outcome == "ok"]


def case(inventory="clinic", active=(), **expect):
    body = {"outcome": "ok"} | expect
    return Case(id="c", category="computing", inventory=inventory, sentence="Do.", active=active, expect=body)


def placed(**workloads):
    return {
        "outcome": "ok",
        "placement": {
            name.replace("_", "-"): {"allowed_nodes": allowed, "node": allowed[0]}
            for name, allowed in workloads.items()
        },
    }


def routed(*routes, blocked=(), **placement):
    return placed(**placement) | {
        "routes": [{"from": a, "to": b, "path": path.split()} for a, b, path in routes],
        "blocked": [list(pair) for pair in blocked],
    }


def verdict(expected, result, inventory=CLINIC):
    return judge(expected, inventory, result).verdict


class TestRefusals:
    ASKED = case(outcome="refused", kinds=["vacuous", "not_understood"])

    def test_a_refusal_of_a_kind_that_is_expected_is_right(self):
        assert verdict(self.ASKED, refused("vacuous")) is Verdict.REFUSED_RIGHT
        assert verdict(self.ASKED, refused("not_understood")) is Verdict.REFUSED_RIGHT

    def test_a_refusal_for_a_reason_that_is_not_the_case_is_wrong(self):
        assert verdict(self.ASKED, refused("conflict")) is Verdict.REFUSED_WRONGLY
        assert verdict(self.ASKED, {"outcome": "refused", "reason": "just so"}) is Verdict.REFUSED_WRONGLY

    def test_enforcing_what_has_to_be_refused_is_a_wrong_policy_however_strict(self):
        assert verdict(self.ASKED, placed(triage=["ward-1"])) is Verdict.WRONG_POLICY

    def test_refusing_what_has_to_be_enforced_is_wrong_unless_asking_back_is_allowed(self):
        assert verdict(case(placement={"triage": ["ward-1"]}), refused("ambiguous")) is Verdict.REFUSED_WRONGLY
        either = case(placement={"triage": ["ward-1"]}, also_refused=["ambiguous"])
        assert verdict(either, refused("ambiguous")) is Verdict.REFUSED_RIGHT
        assert verdict(either, refused("vacuous")) is Verdict.REFUSED_WRONGLY


class TestUnreadableResults:
    @pytest.mark.parametrize(
        "result",
        [
            {},
            {"outcome": "perhaps"},
            {"outcome": "ok", "placement": {"triage": "ward-1"}},
            {"outcome": "ok", "routes": 1},
        ],
    )
    def test_what_cannot_be_read_counts_as_a_wrong_policy(self, result):
        assert verdict(case(placement={"triage": ["ward-1"]}), result) is Verdict.WRONG_POLICY


class TestPlacement:
    ASKED = case(placement={"triage": ["ward-1", "ward-2"]})

    def test_exactly_the_expected_nodes_are_a_success_in_any_order(self):
        assert verdict(self.ASKED, placed(triage=["ward-2", "ward-1"])) is Verdict.SUCCESS

    def test_one_node_more_is_a_wrong_policy(self):
        assert verdict(self.ASKED, placed(triage=["ward-1", "ward-2", "lab-1"])) is Verdict.WRONG_POLICY

    def test_one_node_less_is_too_strict(self):
        assert verdict(self.ASKED, placed(triage=["ward-1"])) is Verdict.TOO_STRICT

    def test_more_and_less_at_once_is_a_wrong_policy(self):
        assert verdict(self.ASKED, placed(triage=["ward-1", "lab-1"])) is Verdict.WRONG_POLICY

    def test_no_placement_at_all_is_a_wrong_policy(self):
        assert verdict(self.ASKED, placed()) is Verdict.WRONG_POLICY

    def test_a_chosen_node_outside_is_a_wrong_policy(self):
        result = {"outcome": "ok", "placement": {"triage": {"allowed_nodes": ["ward-1", "ward-2"], "node": "lab-1"}}}
        assert verdict(self.ASKED, result) is Verdict.WRONG_POLICY

    def test_restricting_a_workload_that_was_not_spoken_of_is_too_strict(self):
        both = placed(triage=["ward-1", "ward-2"], kiosk=["cloud-1"])
        assert verdict(self.ASKED, both) is Verdict.TOO_STRICT
        free = placed(triage=["ward-1", "ward-2"], kiosk=["cloud-1", "ward-1", "ward-2", "lab-1"])
        assert verdict(self.ASKED, free) is Verdict.SUCCESS

    def test_a_preference_chooses_among_what_is_allowed(self):
        asked = case(placement={"triage": ["ward-1", "ward-2"]}, prefers={"triage": ["ward-2"]})
        assert verdict(asked, placed(triage=["ward-2", "ward-1"])) is Verdict.SUCCESS
        assert verdict(asked, placed(triage=["ward-1", "ward-2"])) is Verdict.TOO_STRICT

    def test_so_many_of_the_workloads_have_to_be_there(self):
        asked = case(
            at_least=[{"workloads": ["triage", "imaging", "kiosk"], "nodes": ["ward-1", "ward-2"], "count": 2}]
        )
        assert verdict(asked, {"outcome": "ok"}) is Verdict.SUCCESS  # triage and imaging are there already
        assert verdict(asked, placed(imaging=["lab-1"])) is Verdict.WRONG_POLICY


class TestSpread:
    def test_apart_by_node(self):
        asked = case(apart=[{"workloads": ["billing"], "others": ["backup"]}])  # both run on lab-1
        every = ["ward-1", "ward-2", "lab-1", "cloud-1"]
        assert verdict(asked, placed(billing=every)) is Verdict.SUCCESS
        assert verdict(asked, {"outcome": "ok"}) is Verdict.WRONG_POLICY

    def test_a_missing_label_proves_neither_apart_nor_together(self):
        providers = {"workloads": ["triage"], "others": ["kiosk"], "topology": "provider"}  # ward-1 names none
        assert verdict(case(apart=[providers]), {"outcome": "ok"}) is Verdict.WRONG_POLICY
        assert verdict(case(together=[providers]), {"outcome": "ok"}) is Verdict.WRONG_POLICY

    def test_together_by_zone(self):
        asked = case("campus", together=[{"workloads": ["medlog"], "others": ["payroll"], "topology": "zone"}])
        assert verdict(asked, {"outcome": "ok"}, CAMPUS) is Verdict.SUCCESS
        apart = case("campus", apart=[{"workloads": ["medlog"], "others": ["payroll"], "topology": "zone"}])
        assert verdict(apart, {"outcome": "ok"}, CAMPUS) is Verdict.WRONG_POLICY


class TestRoutes:
    def one_way(self, **limits):
        return case(routes=[{"from": ["triage"], "to": ["billing"], "both": False} | limits])

    def test_a_path_that_keeps_the_limits_is_a_success(self):
        asked = self.one_way(avoid=["s2"])
        assert verdict(asked, routed(("triage", "billing", "s1 s4 s3"))) is Verdict.SUCCESS

    @pytest.mark.parametrize(
        ("limits", "path"),
        [
            ({"avoid": ["s2"]}, "s1 s2 s3"),
            ({"avoid_links": ["s2-s3"]}, "s1 s2 s3"),
            ({"through": [["s4", "s5"]]}, "s1 s2 s3"),
            ({"max_latency_ms": 3}, "s1 s4 s3"),
            ({"path": ["s1", "s4", "s3"]}, "s1 s2 s3"),
        ],
    )
    def test_a_path_that_breaks_a_limit_is_a_wrong_policy(self, limits, path):
        assert verdict(self.one_way(**limits), routed(("triage", "billing", path))) is Verdict.WRONG_POLICY

    def test_bandwidth_is_that_of_every_link(self):
        asked = case(
            "campus", routes=[{"from": ["medlog"], "to": ["tutor"], "both": False, "min_bandwidth_mbps": 1000}]
        )
        assert verdict(asked, routed(("medlog", "tutor", "a2 d2 c1")), CAMPUS) is Verdict.SUCCESS
        assert verdict(asked, routed(("medlog", "tutor", "a2 d1 c1")), CAMPUS) is Verdict.WRONG_POLICY

    @pytest.mark.parametrize(
        ("path", "why"),
        [
            ("s1 s3", "no such link"),
            ("s1 s4 s5 s3", "a link that is down"),
            ("s2 s3", "does not start where triage runs"),
            ("s1 s4", "does not end where billing runs"),
            ("s1 s4 s1 s4 s3", "goes round in circles"),
            ("s1 s9 s3", "no such switch"),
            ("", "empty, but they run on different nodes"),
        ],
    )
    def test_a_path_that_cannot_be_walked_is_a_wrong_policy(self, path, why):
        assert verdict(self.one_way(avoid=["s2"]), routed(("triage", "billing", path))) is Verdict.WRONG_POLICY, why

    def test_the_path_starts_where_the_plan_puts_the_workload(self):
        every = ["ward-2", "ward-1", "lab-1", "cloud-1"]
        moved = routed(("triage", "billing", "s2 s4 s3"), triage=every)
        assert verdict(self.one_way(avoid=["s1"]), moved) is Verdict.SUCCESS
        assert verdict(self.one_way(avoid=["s5"]), routed(("triage", "billing", "s1 s4 s3"), triage=every)) is (
            Verdict.WRONG_POLICY
        )

    def test_on_one_node_there_is_no_path_and_no_limit_to_break(self):
        every = ["lab-1", "ward-2", "ward-1", "cloud-1"]
        asked = self.one_way(avoid=["s3"])
        assert verdict(asked, routed(("triage", "billing", ""), triage=every)) is Verdict.SUCCESS
        assert verdict(asked, routed(("triage", "billing", "s3"), triage=every)) is Verdict.WRONG_POLICY

    def test_both_ways_are_meant_unless_told(self):
        there_and_back = case(routes=[{"from": ["triage"], "to": ["billing"], "avoid": ["s2"]}])
        assert verdict(there_and_back, routed(("triage", "billing", "s1 s4 s3"))) is Verdict.WRONG_POLICY
        back = ("billing", "triage", "s3 s4 s1")
        assert verdict(there_and_back, routed(("triage", "billing", "s1 s4 s3"), back)) is Verdict.SUCCESS

    def test_a_pair_that_should_be_routed_and_is_cut_off_is_too_strict(self):
        cut = routed(blocked=[("triage", "billing")])
        assert verdict(self.one_way(avoid=["s2"]), cut) is Verdict.TOO_STRICT

    def test_it_is_too_strict_even_where_no_path_would_do_because_the_sentence_cannot_be_met_so(self):
        cut = routed(blocked=[("triage", "billing")])
        assert verdict(self.one_way(avoid=["s2", "s4"]), cut) is Verdict.TOO_STRICT

    def test_a_pair_that_is_neither_routed_nor_cut_off_is_left_open(self):
        assert verdict(self.one_way(avoid=["s2"]), routed()) is Verdict.WRONG_POLICY

    def test_a_pair_that_is_routed_and_cut_off_says_two_things(self):
        both = routed(("triage", "billing", "s1 s4 s3"), blocked=[("triage", "billing")])
        assert verdict(self.one_way(avoid=["s2"]), both) is Verdict.WRONG_POLICY

    def test_another_path_than_the_preferred_one_is_too_strict(self):
        asked = self.one_way(prefer_path=["s1", "s4", "s3"])
        assert verdict(asked, routed(("triage", "billing", "s1 s2 s3"))) is Verdict.TOO_STRICT
        assert verdict(asked, routed(("triage", "billing", "s1 s4 s3"))) is Verdict.SUCCESS


class TestRoutesToEveryOther:
    ASKED = case(routes=[{"from": ["billing"], "to": ["*"], "both": False, "avoid": ["s5"]}])
    SERVED = (("billing", "triage", "s3 s2 s1"), ("billing", "imaging", "s3 s2"), ("billing", "backup", ""))

    def test_whoever_cannot_be_reached_within_the_limit_is_cut_off(self):
        assert verdict(self.ASKED, routed(*self.SERVED, blocked=[("billing", "kiosk")])) is Verdict.SUCCESS

    def test_whoever_cannot_be_reached_and_is_not_cut_off_is_left_open(self):
        assert verdict(self.ASKED, routed(*self.SERVED)) is Verdict.WRONG_POLICY

    def test_whoever_can_be_reached_must_not_be_cut_off(self):
        less = routed(*self.SERVED[1:], blocked=[("billing", "kiosk"), ("billing", "triage")])
        assert verdict(self.ASKED, less) is Verdict.TOO_STRICT

    def test_workloads_on_one_node_need_no_route_but_must_not_be_cut_off(self):
        cut = [("billing", "kiosk"), ("billing", "backup")]
        assert verdict(self.ASKED, routed(*self.SERVED[:2], blocked=cut[:1])) is Verdict.SUCCESS
        assert verdict(self.ASKED, routed(*self.SERVED[:2], blocked=cut)) is Verdict.TOO_STRICT

    def test_a_way_point_or_a_latency_may_be_what_no_path_can_meet(self):
        via_s5 = case(routes=[{"from": ["triage"], "to": ["*"], "both": False, "through": [["s5"]]}])
        cut = [("triage", "imaging"), ("triage", "billing"), ("triage", "backup")]
        assert verdict(via_s5, routed(("triage", "kiosk", "s1 s4 s5"), blocked=cut)) is Verdict.SUCCESS
        quick = case(routes=[{"from": ["triage"], "to": ["*"], "both": False, "max_latency_ms": 1}])
        cut = [("triage", "kiosk"), ("triage", "billing"), ("triage", "backup")]
        assert verdict(quick, routed(("triage", "imaging", "s1 s2"), blocked=cut)) is Verdict.SUCCESS

    def test_a_workload_that_runs_nowhere_is_not_waited_for(self):
        asked = case("campus", routes=[{"from": ["medlog"], "to": ["*"], "both": False, "avoid": ["d1", "d2"]}])
        cut = [("medlog", other) for other in ("chat", "search", "tutor", "archive")]
        result = routed(("medlog", "payroll", "a2"), blocked=cut)
        assert verdict(asked, result, CAMPUS) is Verdict.SUCCESS


class TestIsolation:
    ASKED = case(blocked=[["billing", "kiosk"]])

    def test_pairs_may_be_lists_or_objects(self):
        assert verdict(self.ASKED, routed(blocked=[("billing", "kiosk")])) is Verdict.SUCCESS
        as_object = {"outcome": "ok", "blocked": [{"from": "billing", "to": "kiosk"}]}
        assert verdict(self.ASKED, as_object) is Verdict.SUCCESS

    def test_a_pair_that_is_not_cut_off_is_a_wrong_policy(self):
        assert verdict(self.ASKED, routed()) is Verdict.WRONG_POLICY
        assert verdict(self.ASKED, routed(blocked=[("kiosk", "billing")])) is Verdict.WRONG_POLICY

    def test_cutting_off_more_is_too_strict_unless_it_is_left_open(self):
        more = routed(blocked=[("billing", "kiosk"), ("kiosk", "billing")])
        assert verdict(self.ASKED, more) is Verdict.TOO_STRICT
        either = case(blocked=[["billing", "kiosk"]], may_block=[["kiosk", "billing"]])
        assert verdict(either, more) is Verdict.SUCCESS

    def test_what_active_intents_cut_off_is_not_the_sentence_being_strict(self):
        active = [
            {
                "metadata": {"name": "quiet"},
                "specs": [
                    {
                        "subjects": {"any_of": [{"all_of": [{"key": "name", "values": ["kiosk"]}]}]},
                        "isolation": [{"peers": {"any_of": [{"all_of": [{"key": "name", "values": ["billing"]}]}]}}],
                    }
                ],
            }
        ]
        more = routed(blocked=[("billing", "kiosk"), ("kiosk", "billing")])
        assert verdict(case(blocked=[["billing", "kiosk"]], active=active), more) is Verdict.SUCCESS


class TestTransfer:
    ASKED = case(transfer={"imaging": {"state": ["kv"], "switches": ["s1", "s2", "s4"]}})

    def result(self, **rule):
        subjects = {"any_of": [{"all_of": [{"key": "name", "values": ["imaging"]}]}]}
        return {"outcome": "ok", "intent": {"specs": [{"subjects": subjects, "transfer": [rule]}]}}

    def switches(self, *names):
        return {"any_of": [{"all_of": [{"key": "name", "values": list(names)}]}]}

    def test_exactly_the_expected_switches_are_a_success(self):
        result = self.result(switches=self.switches("s1", "s2", "s4"), state=["kv"])
        assert verdict(self.ASKED, result) is Verdict.SUCCESS

    def test_a_switch_more_is_a_wrong_policy_and_one_less_is_too_strict(self):
        more = self.result(switches=self.switches("s1", "s2", "s3", "s4"))
        assert verdict(self.ASKED, more) is Verdict.WRONG_POLICY
        assert verdict(self.ASKED, self.result(switches=self.switches("s1", "s2"))) is Verdict.TOO_STRICT

    def test_a_rule_about_other_state_does_not_count(self):
        result = self.result(switches=self.switches("s1", "s2", "s4"), state=["weights"])
        assert verdict(self.ASKED, result) is Verdict.WRONG_POLICY

    def test_forbidding_the_move_is_too_strict_unless_it_is_asked_for(self):
        forbidden = self.result(forbidden=True, switches=self.switches("s1", "s2", "s4"))
        assert verdict(self.ASKED, forbidden) is Verdict.TOO_STRICT
        never = case(transfer={"imaging": {"forbidden": True}})
        assert verdict(never, self.result(forbidden=True)) is Verdict.SUCCESS
        assert verdict(never, {"outcome": "ok"}) is Verdict.WRONG_POLICY

    def test_placement_limits_where_a_migration_goes(self):
        asked = case(placement={"imaging": ["ward-2"]}, transfer={"imaging": {"nodes": ["ward-2"]}})
        german = {"any_of": [{"all_of": [{"key": "midstream.dev/jurisdiction", "values": ["DE"]}]}]}
        assert verdict(asked, placed(imaging=["ward-2"]) | self.result(nodes=german)) is Verdict.SUCCESS


class TestMutationsOfRightPlans:
    """Whatever is widened in a right plan is seen, for every expectation of the benchmark."""

    @given(st.data())
    def test_an_allowed_node_more_is_seen(self, data):
        asked = data.draw(st.sampled_from([each for each in MET if each.expect.placement]))
        inventory = bundled_inventories()[asked.inventory]
        plan = copy.deepcopy(_plan(asked.id))
        name = data.draw(st.sampled_from(sorted(asked.expect.placement)))
        beyond = sorted(set(inventory.node) - set(asked.expect.placement[name]))
        plan["placement"][name]["allowed_nodes"].append(data.draw(st.sampled_from(beyond)))
        assert judge(asked, inventory, plan).verdict is Verdict.WRONG_POLICY

    @given(st.data())
    def test_a_pair_no_longer_cut_off_is_seen(self, data):
        asked = data.draw(st.sampled_from([each for each in MET if each.expect.blocked]))
        plan = copy.deepcopy(_plan(asked.id))
        pair = list(data.draw(st.sampled_from(asked.expect.blocked)))
        plan["blocked"].remove(pair)
        assert judge(asked, bundled_inventories()[asked.inventory], plan).verdict is Verdict.WRONG_POLICY

    @given(st.data())
    def test_a_detour_over_an_avoided_switch_is_seen(self, data):
        asked = data.draw(st.sampled_from([each for each in MET if any(route.avoid for route in each.expect.routes)]))
        plan = copy.deepcopy(_plan(asked.id))
        rule = next(route for route in asked.expect.routes if route.avoid)
        route = next(each for each in plan["routes"] if each["from"] == rule.source[0] and each["path"])
        route["path"].insert(1, data.draw(st.sampled_from(rule.avoid)))
        assert judge(asked, bundled_inventories()[asked.inventory], plan).verdict is Verdict.WRONG_POLICY


PLANS = {each.id: perfect_plan(each, bundled_inventories()[each.inventory]) for each in MET}


def _plan(case_id):
    return PLANS[case_id]
