"""Options of the soak: what is refused, and what clients ask."""

import pytest

from loadgen.benchmarks.migrate.options import NODES
from loadgen.benchmarks.soak.options import SoakOptions
from loadgen.benchmarks.soak.schedule import Kind
from loadgen.errors import OptionsError


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"kills": 0}, "kills is 0, but must be at least 1"),
        (
            {"deck": {Kind.CHANGE: 3, Kind.STAGE: 0}},
            "the deck has no card that kills; add one of change_link, change_n",
        ),
        ({"link": "10gbit"}, "link '10gbit' is none of"),
        ({"layers_from": "15,15"}, "'15' is not layers on one of the nodes"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(given, says):
    with pytest.raises(OptionsError, match=says):
        SoakOptions(**given)


def test_there_is_a_greedy_and_a_seeded_request_for_every_prompt_and_prompts_differ_in_length():
    requests = SoakOptions(streams=4, prompt_tokens=400).requests()
    assert [request.name for request in requests[:4]] == ["greedy-0", "seeded-0", "greedy-1", "seeded-1"]
    assert {(request.name.startswith("greedy"), request.temperature == 0) for request in requests} == {
        (True, True),
        (False, False),
    }
    assert sorted(len(request.prompt.split()) for request in requests[::2]) == [8, 32, 120, 400]
    assert len({request.seed for request in requests}) == len(requests)
    assert len({request.max_tokens for request in requests}) == 2


def test_a_client_makes_the_same_choices_with_the_same_seed():
    def chosen(seed: int, client: int) -> list[float]:
        choices = SoakOptions(seed=seed).choices(client)
        return [choices.random() for _ in range(5)]

    assert chosen(1, 0) == chosen(1, 0)
    assert len({tuple(chosen(seed, client)) for seed in (1, 2) for client in (0, 1)}) == 4


def test_the_schedule_knows_the_nodes_the_layers_and_the_cuts():
    setting = SoakOptions(layers_from="4@edge-1,6@edge-2", layers_to="5@edge-1,5@edge-2").setting(("silent",))
    assert (setting.nodes, setting.layers, setting.cuts) == (NODES, 10, ("silent",))
