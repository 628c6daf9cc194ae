"""Options of the migration experiment: what is refused, with which words, and what the load is."""

import pytest

from loadgen.benchmarks.migrate.options import METHODS, MigrateOptions
from loadgen.errors import OptionsError


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"layers_from": "15,15"}, r"--from '15,15': '15' is not layers on one of the nodes edge-1 and edge-2"),
        ({"layers_to": "8@edge-1,22@cloud"}, "--to '8@edge-1,22@cloud': '22@cloud' is not"),
        ({"link": "10gbit"}, "link '10gbit' is none of 1gbit, 100mbit, loopback"),
        ({"methods": ("pre_copy", "magic")}, "methods 'pre_copy,magic' are not one or more of pre_copy, stop_and_copy"),
        ({"methods": ("pre_copy", "pre_copy")}, "each once"),
        ({"methods": ()}, "methods '' are not one or more"),
        ({"prompt_tokens": 3}, "prompts of 3 tokens: must be at least 8"),
        ({"prompt_tokens": 1800, "tokens": 200}, "with the 200 tokens of an answer at most 1900"),
        ({"check_wire": True}, "only be checked on a link of its own; add --link 1gbit"),
        ({"layers_to": "15@edge-1,15@edge-2"}, "nothing to change"),
        ({"streams": 0}, "streams is 0"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(given, says):
    with pytest.raises(OptionsError, match=says):
        MigrateOptions(**given)


def test_every_second_stream_is_seeded_and_prompts_are_long_and_different():
    requests = MigrateOptions(streams=4, prompt_tokens=100).requests()
    assert [request.temperature for request in requests] == [0.0, 0.8, 0.0, 0.8]
    assert [len(request.prompt.split()) for request in requests] == [100] * 4
    assert len({request.prompt[:40] for request in requests}) == 4


def test_prompts_are_the_same_each_time():
    assert (
        MigrateOptions().requests(16)[3].prompt
        == MigrateOptions().requests()[3].prompt
        == MigrateOptions().prompts()["stream-3"]
    )


def test_each_method_comes_first_in_its_turn():
    options = MigrateOptions()
    orders = [options.methods_in(repeat) for repeat in range(4)]
    assert [order[0] for order in orders] == [*METHODS, METHODS[0]]
    assert all(sorted(order) == sorted(METHODS) for order in orders)


def test_the_head_is_told_of_its_nodes_and_where_its_key_is():
    argv = MigrateOptions(model="m").head_argv(8000, "10.0.0.1:7100", "/keys/head")
    line = " ".join(argv)
    assert "--model m --layers 15@edge-1,15@edge-2 --host 127.0.0.1 --port 8000" in line
    assert line.endswith("--node edge-1 --node edge-2 --name head --state /keys/head --listen 10.0.0.1:7100")
