import io
import itertools

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from intents.benchmark import growth
from intents.benchmark.growth import SIZES, Size, Timed, measure, random_inventory, size, table, to_json
from intents.model import labels

sizes = st.builds(Size, st.integers(1, 60), st.integers(2, 25), st.integers(1, 12))


def in_eu(element):
    return element.labels.get(labels.JURISDICTION) in growth.EU_SITES


class TestRandomInventories:
    @given(sizes, st.integers(0, 10_000))
    def test_have_the_size_asked_for_and_are_the_same_for_the_same_seed(self, wanted, seed):
        drawn = random_inventory(wanted, seed)
        assert (len(drawn.nodes), len(drawn.switches), len(drawn.workloads)) == (
            wanted.nodes,
            wanted.switches,
            wanted.workloads,
        )
        assert drawn == random_inventory(wanted, seed)

    @given(sizes, st.integers(0, 10_000))
    def test_are_joined_by_links_that_are_up(self, wanted, seed):
        drawn = random_inventory(wanted, seed)
        graph = nx.Graph([(link.a, link.b) for link in drawn.links if link.up])
        graph.add_nodes_from(drawn.switch)
        assert nx.is_connected(graph)

    @given(sizes, st.integers(0, 10_000))
    def test_can_meet_the_sentences_there_are_encrypted_paths_between_the_switches_in_the_eu(self, wanted, seed):
        drawn = random_inventory(wanted, seed)
        european = {switch.name for switch in drawn.switches if in_eu(switch)}
        encrypted = [link for link in drawn.links if link.up and link.labels.get(labels.ENCRYPTED) == "true"]
        graph = nx.Graph([(link.a, link.b) for link in encrypted if {link.a, link.b} <= european])
        graph.add_nodes_from(european)
        assert nx.is_connected(graph)
        assert any(in_eu(node) and node.labels.get(labels.TRUST) == "trusted" for node in drawn.nodes)

    def test_differ_from_seed_to_seed(self):
        assert random_inventory(SIZES[0], 1) != random_inventory(SIZES[0], 2)

    def test_have_some_missing_labels_and_some_links_that_are_down(self):
        drawn = random_inventory(Size(500, 60, 10), 1)
        assert len({len(node.labels) for node in drawn.nodes}) > 1
        assert not all(link.up for link in drawn.links)

    @pytest.mark.parametrize("wanted", [Size(0, 2, 1), Size(1, 1, 1), Size(1, 2, 0)])
    def test_a_size_without_anything_in_it_is_refused(self, wanted):
        with pytest.raises(ValueError, match="needs at least 2 switches"):
            random_inventory(wanted, 1)

    def test_the_sizes_lead_from_the_small_one_to_the_large_one_with_their_limits(self):
        assert SIZES[0] == size(20, 10, limit_ms=100)
        assert SIZES[-1] == size(5000, 500, limit_ms=2000)


class TestMeasuring:
    @pytest.fixture
    def clock(self, monkeypatch):
        """A clock on which the n-th plan takes n milliseconds."""
        moments = itertools.accumulate(itertools.chain.from_iterable((0.0, n / 1000) for n in itertools.count(1)))
        monkeypatch.setattr(growth.time, "perf_counter", lambda: next(moments))

    def test_each_sentence_is_timed_at_each_size(self, clock):
        asked = []

        def plan(sentence, inventory):
            asked.append((sentence, len(inventory.nodes)))
            return {"outcome": "ok"}

        timed = measure(plan, [size(20, 10, limit_ms=3), size(50, 15)], ["first", "second"], repeats=3)
        assert asked == [*3 * [("first", 20)], *3 * [("second", 20)], *3 * [("first", 50)], *3 * [("second", 50)]]
        assert [(round(each.median_ms), round(each.worst_ms)) for each in timed] == [(2, 3), (5, 6), (8, 9), (11, 12)]
        assert [each.within_limit for each in timed] == [True, False, None, None]

    def test_the_worst_repeat_has_to_keep_the_limit(self):
        assert Timed(size(20, 10, limit_ms=100), "first", "ok", median_ms=50, worst_ms=150).within_limit is False

    def test_what_came_of_a_sentence_is_told_so_that_a_quick_refusal_is_not_taken_for_speed(self):
        timed = measure(lambda *_: {"outcome": "refused"}, [size(20, 10)], ["first"], repeats=1)
        assert to_json(timed)[0]["outcome"] == "refused"
        shown = io.StringIO()
        Console(file=shown, width=160).print(table(timed))
        assert "refused" in shown.getvalue()
