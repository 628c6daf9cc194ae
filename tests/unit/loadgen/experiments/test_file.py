from pathlib import Path

import pytest

from loadgen.experiments.file import ExperimentFileError, parse_experiment, read_experiment
from loadgen.experiments.targets import MidstreamTarget
from tests.unit.loadgen.experiments.texts import DEMO


def problems(text: str, *sets: str) -> str:
    with pytest.raises(ExperimentFileError) as error:
        parse_experiment(text, "x.yaml", sets)
    return str(error.value)


def test_an_arm_differs_from_the_file_only_in_what_it_says():
    static, dynamic = parse_experiment(DEMO, "x.yaml").arms
    assert static.settings.actions == ()
    assert [action.kind for action in dynamic.settings.actions] == ["reconfigure"]
    assert dynamic.settings.workload == static.settings.workload
    assert dynamic.settings.target == static.settings.target


def test_a_file_without_arms_is_one_arm():
    experiment = parse_experiment(DEMO.partition("arms:")[0], "x.yaml")
    assert [arm.name for arm in experiment.arms] == ["run"]


@pytest.mark.parametrize(
    ("wrong", "right", "told"),
    [
        ("users: 2", "users: two", "x.yaml:6: workload.users is 'two': Input should be a valid integer"),
        ("users: 2", "user: 2", "x.yaml:6: workload.user is no field that is known here"),
        ("kind: closed", "kind: clsed", "x.yaml:6: workload kind 'clsed' is none of 'closed', 'open'"),
        ("duration_s: 2, ", "", "x.yaml:6: workload cannot be used: a closed loop needs an end"),
        ("kind: mock", "kind: mok", "x.yaml:5: target kind 'mok' is none of 'endpoint', 'midstream'"),
        ("repeats: 2", "repeats: 0", "x.yaml:4: repeats is 0: Input should be greater"),
        ("repeats: 2", "repeat: 2", "x.yaml:4: repeat is no field that is known here"),
        ("name: dynamic", "name: static", "x.yaml:9: arms[1].name 'static' is the name of another arm too"),
        ("name: dynamic", "name: A/b", "x.yaml:9: arms[1].name an arm needs a name"),
        ("at_s: 1", "after: 1", "x.yaml:10: arms[1].actions[0].after is no field that is known here"),
        ("at_s: 1", "at_s: 1, after_tokens: 2", "x.yaml:10: arms[1].actions[0] needs either at_s or after_tokens"),
        (", at_s: 1", "", "x.yaml:10: arms[1].actions[0] needs either at_s or after_tokens"),
        ('"8,12,10"', '"8,x"', "x.yaml:9: actions[0] (reconfigure) cannot be made: layers '8,x': 'x'"),
        ("kind: reconfigure, layers", "layers", "x.yaml:10: arms[1].actions[0] needs a kind"),
        ('reconfigure, layers: "8,12,10"', "kill_stage, stage: 0", "actions[0] (kill_stage) needs a target of kind"),
        ("kind: Experiment", "kind: Experiments", "x.yaml:2: kind is 'Experiments'"),
        ("v1alpha1", "v9", "x.yaml:1: apiVersion is"),
    ],
)
def test_each_mistake_is_told_with_file_line_field_and_what_to_do(wrong: str, right: str, told: str):
    assert wrong in DEMO
    assert told in problems(DEMO.replace(wrong, right))


def test_a_mistake_that_all_arms_inherit_is_told_once():
    assert len(problems(DEMO.replace("users: 2", "users: -1")).splitlines()) == 1


def test_all_mistakes_are_told_at_once():
    told = problems(DEMO.replace("users: 2", "users: -1").replace("repeats: 2", "repeats: many"))
    assert "x.yaml:4: repeats" in told
    assert "x.yaml:6: workload.users" in told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "x.yaml: empty"),
        ("- 1", "x.yaml:1: must be a mapping"),
        ("a: [", "x.yaml:1: not YAML"),
        ("kind: Experiment\nkind: Experiment\n", "x.yaml:2: 'kind' is given twice"),
        ("a: &x 1\nb: *x\n", "x.yaml:2: an alias"),
        ("a: !!python/object:os.system 1\n", "x.yaml:1: cannot read"),
        ("[a]: 1\n", "x.yaml:1: a key must be a word"),
    ],
)
def test_what_yaml_allows_and_nobody_means_is_refused(text: str, told: str):
    assert told in problems(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("workload.users=4", 4),
        ("arms.dynamic.workload.users=4", 4),
        ("arms.1.workload.users=4", 4),
    ],
)
def test_a_value_can_be_laid_over_the_file(text: str, value: int):
    experiment = parse_experiment(DEMO, "x.yaml", [text])
    assert experiment.arms[1].settings.workload.concurrent_users() == value


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("workload.users", "write path=value"),
        (".users=1", "write path=value"),
        ("arms.other.seed=1", "'other' is neither the name nor the number"),
        ("arms.2.seed=1", "'2' is neither the name nor the number"),
        ("workload.users=[", "is no value"),
        ("workload.users=-1", "--set workload.users: is -1"),
        ("workload.user=1", "--set workload.user: is no field that is known here"),
    ],
)
def test_a_mistake_in_a_value_laid_over_the_file_names_it(text: str, told: str):
    assert told in problems(DEMO, text)


def test_another_kind_of_target_keeps_nothing_of_the_one_above():
    text = DEMO.replace("kind: mock", 'kind: midstream, args: ["--dtype", "float32"]').replace(
        "- name: static", "- name: static\n  target: {kind: vllm}"
    )
    stock, midstream = parse_experiment(text, "x.yaml").arms
    assert stock.settings.target.kind == "vllm"
    assert isinstance(midstream.settings.target, MidstreamTarget)
    assert midstream.settings.target.args == ("--dtype", "float32")


def test_layers_must_name_nodes_where_there_are_some_and_only_there():
    text = DEMO.replace("kind: mock", "kind: midstream, nodes: {link: loopback}")
    assert "layers '15,15': '15' is no number of layers; write, for example, 15@edge-1,15@edge-2" in problems(text)
    assert "is no number of layers; write, for example, 15,15" in problems(
        DEMO.replace("kind: mock", "kind: midstream").replace('"15,15"', '"15@edge-1"')
    )


def test_secrets_are_not_written_in_files():
    told = problems(DEMO.replace("kind: mock", "kind: mock, env: {MIDSTREAM_CONTROL_TOKEN: abc}"))
    assert "x.yaml:5: target.env MIDSTREAM_CONTROL_TOKEN looks like a secret" in told
    assert "abc" not in told


def test_an_analysis_names_arms_that_there_are():
    assert "x.yaml:11: analysis.quiet there is no arm 'nobody'; there are static, dynamic" in problems(
        DEMO + "analysis: {kind: ways_to_change, quiet: nobody}\n"
    )


def test_actions_are_in_the_order_of_their_times():
    later = DEMO.replace("at_s: 1}]", "at_s: 1}, {kind: mark, name: early, at_s: 0.5}]")
    assert "actions[1] (mark) is at 0.5 s, but one before it at 1 s: put it first" in problems(later)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path):
    with pytest.raises(ExperimentFileError, match=r"gone\.yaml: cannot be read"):
        read_experiment(tmp_path / "gone.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ExperimentFileError, match="not UTF-8"):
        read_experiment(tmp_path / "bytes.yaml")
    (tmp_path / "large.yaml").write_bytes(b"#" * (2 << 20))
    with pytest.raises(ExperimentFileError, match="larger than"):
        read_experiment(tmp_path / "large.yaml")
