import io
import itertools
import json

import pytest
from rich.console import Console

from intents.benchmark import runner
from intents.benchmark.cases import bundled_intents, bundled_inventories, bundled_traps
from intents.benchmark.judge import Verdict
from tests.unit.intents.benchmark.perfect import perfect_plan, refused

BY_SENTENCE = {(each.inventory, each.sentence): each for each in (*bundled_intents(), *bundled_traps())}
NAME = {id(inventory): name for name, inventory in bundled_inventories().items()}


def perfect(translator, sentence, inventory, active):
    plan = perfect_plan(BY_SENTENCE[NAME[id(inventory)], sentence], inventory)
    return plan | {"tokens": translator}


def run(plan, cases, translator=7):
    return runner.run("made-up", translator, plan, cases, bundled_inventories())


@pytest.fixture
def clock(monkeypatch):
    """A clock on which the n-th sentence takes n milliseconds."""
    moments = itertools.accumulate(itertools.chain.from_iterable((0.0, n / 1000) for n in itertools.count(1)))
    monkeypatch.setattr(runner.time, "perf_counter", lambda: next(moments))


class TestRun:
    def test_a_perfect_planner_gets_everything_right(self):
        report = run(perfect, {"intents": bundled_intents()})
        rows = {row.category: row for row in report.summaries()}
        assert [(rows[each].cases, rows[each].right) for each in ("computing", "networking", "hybrid", "all")] == [
            (29, 29),
            (31, 31),
            (30, 30),
            (90, 90),
        ]
        assert rows["all"].rate == 1
        assert report.wrong_policies() == []

    def test_refusing_everything_applies_no_wrong_policy_and_is_right_about_the_traps_only(self):
        report = run(lambda *_: refused("vacuous"), {"intents": bundled_intents(), "traps": bundled_traps()})
        whole = {row.part: row for row in report.summaries() if row.category == runner.ALL}
        assert whole["intents"].wrong_policies == whole["traps"].wrong_policies == 0
        assert whole["intents"].refused_wrongly + whole["intents"].refused_right == 90
        assert whole["intents"].rate < 0.1

    def test_allowing_everything_applies_wrong_policies(self):
        report = run(lambda *_: {"outcome": "ok"}, {"intents": bundled_intents()})
        assert len(report.wrong_policies()) >= 85
        assert report.to_json()["wrong_policies"] == len(report.wrong_policies())

    def test_a_wrong_plan_that_waits_for_a_person_is_not_applied_and_counted_apart(self):
        report = run(lambda *_: {"outcome": "ok", "needs_confirmation": True}, {"intents": bundled_intents()[:4]})
        row = report.summaries()[-1]
        assert (row.wrong_policies, row.waiting, row.wrong_if_confirmed, row.right) == (0, 4, 4, 0)
        assert report.wrong_policies() == []

    def test_the_plan_function_gets_translator_sentence_inventory_and_active_intents(self):
        seen = []

        def plan(*given):
            seen.append(given)
            return refused("conflict")

        case = next(each for each in bundled_traps() if each.active)
        run(plan, {"traps": [case]}, translator="t")
        assert seen == [("t", case.sentence, bundled_inventories()[case.inventory], case.active)]

    def test_an_exception_is_an_error_and_the_other_cases_are_still_tried(self):
        def plan(translator, sentence, inventory, active):
            if sentence == bundled_intents()[0].sentence:
                raise KeyError("label")
            return perfect(translator, sentence, inventory, active)

        report = run(plan, {"intents": bundled_intents()[:3]})
        assert [each.judgement.verdict for each in report.tried] == [Verdict.REFUSED_WRONGLY, *2 * [Verdict.SUCCESS]]
        assert report.tried[0].error == "KeyError: 'label'"
        assert report.summaries()[-1].errors == 1


class TestFigures:
    def test_latency_is_the_time_around_the_plan_function(self, clock):
        row = run(perfect, {"intents": bundled_intents()[:5]}).summaries()[-1]
        assert row.latency_median_ms == pytest.approx(3)
        assert row.latency_p95_ms == pytest.approx(4.8)

    def test_tokens_are_summed_and_averaged(self):
        row = run(perfect, {"intents": bundled_intents()[:4]}, translator=250).summaries()[-1]
        assert (row.tokens_total, row.tokens_mean) == (1000, 250)

    def test_checks_are_counted_for_what_was_enforced_and_a_pass_without_any_is_told(self):
        counts = iter([3, 5, 0])

        def plan(translator, sentence, inventory, active):
            return perfect(0, sentence, inventory, active) | {"checks": next(counts) * [{"holds": True}]}

        row = run(plan, {"intents": bundled_intents()[:3]}).summaries()[-1]
        assert row.checks_per_intent == pytest.approx(8 / 3)
        assert row.without_checks == 1
        nothing = run(lambda *_: refused("vacuous"), {"intents": bundled_intents()[:1]}).summaries()[-1]
        assert nothing.checks_per_intent is None

    def test_checks_may_come_as_a_report_with_a_list_inside(self):
        def plan(translator, sentence, inventory, active):
            return perfect(0, sentence, inventory, active) | {"checks": {"holds": True, "checks": [{}, {}]}}

        assert run(plan, {"intents": bundled_intents()[:1]}).summaries()[-1].checks_per_intent == 2


class TestReporting:
    def test_json_has_every_case_with_its_verdict_and_reasons(self):
        report = run(lambda *_: {"outcome": "ok"}, {"intents": bundled_intents()[:2]})
        document = json.loads(json.dumps(report.to_json()))
        assert [each["id"] for each in document["cases"]] == ["computing-01", "computing-02"]
        assert {each["verdict"] for each in document["cases"]} == {"wrong_policy"}
        assert document["cases"][0]["reasons"] == ["triage is not restricted at all"]
        assert document["summaries"][-1]["rate"] == 0

    def test_the_table_has_a_row_for_each_category_and_one_for_the_part(self):
        table = run(perfect, {"intents": bundled_intents()}).table()
        shown = io.StringIO()
        Console(file=shown, width=160).print(table)
        assert table.row_count == 4
        assert shown.getvalue().count("100.0 %") == 4
