import sys

import pytest

from loadgen.benchmarks.reconfigure.options import DEFAULT_SERVER_ARGS, ReconfigureOptions
from loadgen.errors import OptionsError


def test_half_of_the_streams_sample_with_a_seed_and_the_others_are_greedy():
    requests = ReconfigureOptions(streams=4).requests()
    assert [r.temperature for r in requests] == [0.0, 0.8, 0.0, 0.8]
    assert len({r.seed for r in requests}) == len({r.prompt for r in requests}) == len({r.name for r in requests}) == 4
    assert all(r.max_tokens == 128 and r.ignore_eos for r in requests)


def test_prompts_stay_different_with_many_streams():
    assert len({r.prompt for r in ReconfigureOptions(streams=64).requests()}) == 64


def test_both_servers_get_the_same_flags():
    options = ReconfigureOptions(model="org/model")
    ours, stock = options.midstream_argv(8001), options.stock_argv(8002, "org/model")
    assert ours == [
        *(sys.executable, "-m", "controller.cli", "serve"),
        *("--model", "org/model", "--layers", "15,15", "--host", "127.0.0.1", "--port", "8001"),
        *DEFAULT_SERVER_ARGS,
    ]
    assert stock[-2 - 4 - len(DEFAULT_SERVER_ARGS) :] == [
        *("--model", "org/model", "--host", "127.0.0.1", "--port", "8002"),
        *DEFAULT_SERVER_ARGS,
    ]


def test_without_a_model_the_midstream_server_chooses():
    assert "--model" not in ReconfigureOptions().midstream_argv(8001)


def test_the_change_is_posted_after_a_third_of_the_tokens():
    assert ReconfigureOptions(streams=4, tokens=120).change_after_tokens == 160


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"streams": 0}, "streams is 0, but must be at least 1"),
        ({"tokens": 47}, "tokens is 47, but must be at least 48"),
        ({"repeat": 0}, "repeat is 0"),
        ({"layers_from": "15,15", "layers_to": "15,15"}, "nothing to change"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(OptionsError, match=message):
        ReconfigureOptions(**options)
