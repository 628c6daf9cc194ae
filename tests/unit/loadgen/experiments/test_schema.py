from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.experiments.file import parse_experiment, read_experiment
from loadgen.experiments.schema import overlaid
from tests.unit.loadgen.experiments.texts import DEMO

BUILT_IN = sorted(Path(str(resources.files("loadgen.experiments"))).glob("*.yaml"))

trees = st.recursive(
    st.integers() | st.text(max_size=3) | st.none(),
    lambda inner: st.dictionaries(st.sampled_from(["a", "b", "kind"]), inner, max_size=3),
    max_leaves=8,
)
mappings = st.dictionaries(st.sampled_from(["a", "b", "c", "kind"]), trees, max_size=4)


@given(mappings)
def test_nothing_laid_over_changes_nothing(base: dict[str, Any]):
    assert overlaid(base, {}) == base
    assert overlaid({}, base) == base
    assert overlaid(base, base) == base


@given(mappings, mappings)
def test_laying_the_same_over_twice_is_laying_it_over_once(base: dict[str, Any], override: dict[str, Any]):
    once = overlaid(base, override)
    assert overlaid(once, override) == once


@given(mappings, mappings)
def test_what_an_override_gives_is_what_there_is(base: dict[str, Any], override: dict[str, Any]):
    result = overlaid(base, override)
    assert result.keys() == base.keys() | override.keys()
    for key, value in override.items():
        if not isinstance(value, dict):
            assert result[key] == value


@pytest.mark.parametrize("file", BUILT_IN, ids=lambda file: file.stem)
def test_the_experiments_that_come_with_midstream_are_valid_and_named_like_their_files(file: Path):
    assert read_experiment(file).name == file.stem


def test_there_are_five_of_them():
    assert [file.stem for file in BUILT_IN] == [
        "burst-and-scale",
        "growth",
        "shift",
        "static-against-dynamic",
        "ways-to-change",
    ]


def test_every_second_repeat_goes_backwards_and_has_its_own_seed():
    runs = parse_experiment(DEMO, "x.yaml", ["seed=40"]).runs()
    assert [(run.arm.name, run.repeat, run.seed) for run in runs] == [
        ("static", 0, 40),
        ("dynamic", 0, 40),
        ("dynamic", 1, 41),
        ("static", 1, 41),
    ]


def test_an_experiment_as_data_is_an_experiment_again():
    experiment = parse_experiment(DEMO, "x.yaml")
    import json

    again = parse_experiment(json.dumps(experiment.as_data()), "x.json")
    assert again.as_data() == experiment.as_data()
