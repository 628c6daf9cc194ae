"""Descriptions of workloads: what is accepted, how a mistake is told, and the JSON schema."""

import jsonschema
import pytest

from loadgen.errors import OptionsError
from loadgen.workloads import parse_workload, workload_schema
from loadgen.workloads.prompts import TokenIdSource

LENGTHS = {"input_tokens": 64, "output_tokens": {"kind": "uniform", "min": 1, "max": 9}}
CLOSED = {"kind": "closed", "users": 3, "requests": 10, **LENGTHS}
OPEN = {"kind": "open", "arrivals": {"kind": "poisson", "rate": 2}, "duration_s": 10, **LENGTHS}
SESSIONS = {"kind": "sessions", "arrivals": {"kind": "constant", "rate": 2}, "sessions": 4, "turns": 3, **LENGTHS}
TRACE = {"kind": "trace", "format": "burstgpt", "path": "trace.csv", "model": "GPT-4"}
PHASES = {
    "kind": "phases",
    "phases": [
        {"name": "a", "duration_s": 5, "workload": {k: v for k, v in OPEN.items() if k != "duration_s"}},
        {"name": "b", "duration_s": 5, "workload": CLOSED},
    ],
}
ALL = [CLOSED, OPEN, SESSIONS, TRACE, PHASES]


@pytest.mark.parametrize("document", ALL, ids=lambda document: document["kind"])
def test_a_description_survives_being_written_and_read_again(document):
    workload = parse_workload(document)
    assert parse_workload(workload.model_dump(mode="json")) == workload


@pytest.mark.parametrize("document", ALL, ids=lambda document: document["kind"])
def test_the_schema_accepts_what_the_parser_accepts(document):
    jsonschema.Draft202012Validator(workload_schema()).validate(document)


def test_the_schema_refuses_a_misspelt_field():
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(workload_schema()).validate(CLOSED | {"user": 3})


@pytest.mark.parametrize(
    ("document", "told"),
    [
        (5, "workload: input should be a valid dictionary or object to extract fields from (got 5)"),
        ({"kind": "opn"}, "workload: input tag 'opn' found using 'kind' does not match any of the expected tags"),
        ({}, "workload: unable to extract tag using discriminator 'kind'"),
        (CLOSED | {"users": 0}, "workload.users: input should be greater than 0 (got 0)"),
        (CLOSED | {"user": 3}, "workload.user: extra inputs are not permitted (got 3)"),
        (
            OPEN | {"arrivals": {"kind": "poisson", "rate": -1}},
            "workload.arrivals.rate: input should be greater than 0",
        ),
        (OPEN | {"arrivals": {"kind": "poisson"}}, "workload.arrivals.rate: field required"),
        (OPEN | {"output_tokens": {"kind": "uniform", "min": 3, "max": 1}}, "workload.output_tokens: max (1) is below"),
        (OPEN | {"input_tokens": "many"}, "workload.input_tokens: should be a number, or a distribution such as"),
        (TRACE | {"format": "azure2024"}, "workload: azure2024 traces do not say which model was asked"),
        (TRACE | {"sample": 1.5}, "workload.sample: input should be less than or equal to 1 (got 1.5)"),
        ({"kind": "phases", "phases": []}, "workload.phases: tuple should have at least 1 item"),
    ],
)
def test_a_mistake_is_told_with_the_path_of_its_field(document, told):
    with pytest.raises(OptionsError) as refused:
        parse_workload(document)
    assert str(refused.value).startswith(told)
    assert "\n" not in str(refused.value)


def test_every_mistake_is_told_once_on_a_line_of_its_own():
    broken = {"kind": "phases", "phases": [{"name": "a b", "duration_s": 1, "workload": CLOSED | {"users": 0, "x": 1}}]}
    with pytest.raises(OptionsError) as refused:
        parse_workload(broken, at="arms[1].workload")
    assert str(refused.value).splitlines() == [
        "arms[1].workload.phases[0].name: string should match pattern '^[A-Za-z0-9][A-Za-z0-9_.-]*$' (got 'a b')",
        "arms[1].workload.phases[0].workload.users: input should be greater than 0 (got 0)",
        "arms[1].workload.phases[0].workload.x: extra inputs are not permitted (got 1)",
    ]


@pytest.mark.parametrize(
    "document", [CLOSED | {"requests": None}, OPEN | {"duration_s": None}, SESSIONS | {"sessions": None}]
)
def test_a_load_without_an_end_is_refused(document):
    with pytest.raises(OptionsError, match=r"needs? an end"):
        parse_workload(document).plan(1, TokenIdSource(1000))


@pytest.mark.parametrize(
    ("field", "value"),
    [("input_tokens", 0), ("output_tokens", 0), ("input_tokens", {"kind": "uniform", "min": 0, "max": 5})],
)
def test_lengths_of_nothing_are_refused(field, value):
    with pytest.raises(OptionsError, match=f"{field} can be 0, but the least is 1"):
        parse_workload(OPEN | {field: value}).plan(1, TokenIdSource(1000))
