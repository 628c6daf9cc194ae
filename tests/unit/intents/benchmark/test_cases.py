from collections import Counter

import pytest

from intents.benchmark.cases import (
    BenchmarkError,
    bundled_intents,
    bundled_inventories,
    bundled_paraphrases,
    bundled_traps,
    read_cases,
    read_paraphrases,
)
from intents.benchmark.judge import Verdict, judge
from tests.unit.intents.benchmark.perfect import perfect_plan

EVERYTHING = (*bundled_intents(), *bundled_traps())
SHARE_A_NODE = {"hybrid-29"}  # the two may run on one node, which is within the sentence and leaves no packet to limit
ON_THE_NETWORK = [
    case for case in EVERYTHING if (case.expect.routes or case.expect.blocked) and case.id not in SHARE_A_NODE
]
ONE = "- id: a\n  category: computing\n  inventory: clinic\n  sentence: Keep triage here.\n"


class TestWhatIsInTheBenchmark:
    def test_it_has_as_many_intents_of_each_category_as_the_prior_system_was_measured_with(self):
        assert Counter(case.category for case in bundled_intents()) == {
            "computing": 29,
            "networking": 31,
            "hybrid": 30,
        }

    def test_about_half_of_each_category_is_complex(self):
        complexity = Counter((case.category, case.complexity) for case in bundled_intents())
        assert all(
            13 <= complexity[category, each] <= 17
            for category in ("computing", "networking", "hybrid")
            for each in ("simple", "complex")
        )

    def test_the_inventories_differ_in_size(self):
        sizes = {
            name: (len(inventory.nodes), len(inventory.switches)) for name, inventory in bundled_inventories().items()
        }
        assert sizes["clinic"] == (4, 5)
        assert sizes["campus"] == (8, 6)
        assert sizes["company"] == (20, 12)
        assert {case.inventory for case in bundled_intents()} == {"clinic", "campus", "company", "werke", "opaque"}

    def test_no_sentence_is_asked_twice_of_one_inventory(self):
        sentences = Counter((case.inventory, case.sentence) for case in (*EVERYTHING, *bundled_paraphrases()))
        twice = [sentence for sentence, times in sentences.items() if times > 1]
        shared_by_traps = {case.sentence for case in bundled_traps() if case.active}
        assert [sentence for _, sentence in twice if sentence not in shared_by_traps] == []

    def test_every_trap_says_why_it_is_one_and_there_are_at_least_sixty(self):
        assert len(bundled_traps()) >= 60
        assert all(case.why for case in bundled_traps())

    def test_paraphrases_are_cases_of_their_own_with_the_expectation_of_the_original(self):
        assert len(bundled_paraphrases()) == 90
        originals = {case.id: case for case in bundled_intents()}
        for paraphrase in bundled_paraphrases():
            original = originals[paraphrase.id.partition(".")[0]]
            assert paraphrase.expect == original.expect
            assert paraphrase.sentence != original.sentence


class TestExpectations:
    @pytest.mark.parametrize("case", EVERYTHING, ids=lambda case: case.id)
    def test_can_be_met_and_what_meets_them_is_judged_right(self, case):
        inventory = bundled_inventories()[case.inventory]
        judgement = judge(case, inventory, perfect_plan(case, inventory))
        assert judgement.verdict.right, judgement.reasons

    @pytest.mark.parametrize("case", [each for each in EVERYTHING if each.expect.placement], ids=lambda case: case.id)
    def test_a_plan_without_limits_meets_none_of_them(self, case):
        inventory = bundled_inventories()[case.inventory]
        unlimited = perfect_plan(case, inventory)
        for name in case.expect.placement:
            unlimited["placement"][name]["allowed_nodes"] = list(inventory.node)
        assert judge(case, inventory, unlimited).verdict is Verdict.WRONG_POLICY

    @pytest.mark.parametrize("case", ON_THE_NETWORK, ids=lambda case: case.id)
    def test_a_plan_that_leaves_the_network_alone_meets_none_of_them(self, case):
        inventory = bundled_inventories()[case.inventory]
        untouched = perfect_plan(case, inventory) | {"routes": [], "blocked": []}
        assert judge(case, inventory, untouched).verdict is Verdict.WRONG_POLICY


class TestReading:
    @pytest.fixture
    def file(self, tmp_path):
        def write(text):
            path = tmp_path / "cases.yaml"
            path.write_text(text, encoding="utf-8")
            return path

        return write

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            (ONE + "  expect: {outcome: refused}\n", "a refusal is expected with its kinds"),
            (ONE + "  expect: {outcome: ok}\n", "outcome ok needs an expectation"),
            (ONE + "  expect: {outcome: ok, placment: {}}\n", "Extra inputs are not permitted"),
            (ONE + "  expect: {outcome: refused, kinds: [tired]}\n", "Input should be 'not_understood'"),
            (ONE + "  expect: {outcome: ok, placement: {triage: [ward-9]}}\n", "not in inventory clinic: ward-9"),
            (ONE + "  expect: {outcome: ok, blocked: [[triage, kisok]]}\n", "not in inventory clinic: kisok"),
            (
                ONE + "  expect: {outcome: ok, routes: [{from: [triage], to: [kiosk], avoid_links: [s2-s1]}]}\n",
                "not in inventory clinic: s2-s1",
            ),
            (2 * (ONE + "  expect: {outcome: refused, kinds: [vacuous]}\n"), "two cases have this id"),
            (
                ONE.replace("clinic", "clinik") + "  expect: {outcome: refused, kinds: [vacuous]}\n",
                "inventory 'clinik'",
            ),
            ("- {", "cannot be read"),
        ],
    )
    def test_a_mistake_of_the_benchmark_is_named_when_it_is_loaded(self, file, text, says):
        with pytest.raises(BenchmarkError, match=r"cases\.yaml") as error:
            read_cases(file(text), bundled_inventories())
        assert says in str(error.value)

    def test_a_paraphrase_of_nothing_is_named(self, file):
        with pytest.raises(BenchmarkError, match="'computing-99' is no case"):
            read_paraphrases(file("- {of: computing-99, sentence: Keep it.}"), bundled_intents())

    def test_a_file_that_is_not_there_is_named(self, tmp_path):
        with pytest.raises(BenchmarkError, match=r"none\.yaml: cannot be read"):
            read_cases(tmp_path / "none.yaml", bundled_inventories())
