"""Filters of triggers, against a reference that reads like the specification."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.platform.broker.trigger import Trigger, parse_trigger

NAMES = st.sampled_from(["type", "source", "subject", "ext"])
VALUES = st.text("ab", min_size=1, max_size=3)
ATTRIBUTES = st.dictionaries(NAMES, VALUES)
COMPARED = st.dictionaries(NAMES, VALUES, min_size=1)
LEAVES = st.builds(lambda how, wanted: {how: wanted}, st.sampled_from(["exact", "prefix", "suffix"]), COMPARED)
FILTERS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(lambda how, of: {how: of}, st.sampled_from(["all", "any"]), st.lists(inner, min_size=1, max_size=3)),
        inner.map(lambda of: {"not": of}),
    ),
    max_leaves=6,
)


def made(**spec: Any) -> Trigger:
    return parse_trigger(
        {
            "apiVersion": "eventing.knative.dev/v1",
            "kind": "Trigger",
            "metadata": {"name": "a"},
            "spec": {"broker": "default", "subscriber": {"uri": "http://127.0.0.1:1"}, **spec},
        },
        {},
    )


def reference(given: dict[str, Any], attributes: dict[str, str]) -> bool:
    ((how, of),) = given.items()
    tests = {"exact": str.__eq__, "prefix": str.startswith, "suffix": str.endswith}
    if how in tests:
        return all(name in attributes and tests[how](attributes[name], text) for name, text in of.items())
    if how == "not":
        return not reference(of, attributes)
    return {"all": all, "any": any}[how](reference(one, attributes) for one in of)


@given(st.lists(FILTERS, max_size=3), ATTRIBUTES)
def test_filters_mean_what_the_reference_says(filters: list[dict[str, Any]], attributes: dict[str, str]):
    assert made(filters=filters).filter.matches(attributes) is all(reference(one, attributes) for one in filters)


@given(st.dictionaries(NAMES, VALUES | st.just("")), ATTRIBUTES)
def test_attributes_must_be_equal_or_just_be_there(wanted: dict[str, str], attributes: dict[str, str]):
    passes = all(name in attributes and (not text or attributes[name] == text) for name, text in wanted.items())
    assert made(filter={"attributes": wanted}).filter.matches(attributes) is passes


@pytest.mark.parametrize("spec", [{}, {"filter": {}}, {"filter": {"attributes": {}}}, {"filters": []}])
def test_without_a_filter_everything_passes(spec: dict[str, Any]):
    assert made(**spec).filter.matches({"type": "anything"})


def test_filters_override_the_older_filter_unless_there_are_none():
    older = {"attributes": {"type": "b"}}
    assert made(filter=older, filters=[{"exact": {"type": "a"}}]).filter.matches({"type": "a"})
    assert not made(filter=older, filters=[]).filter.matches({"type": "a"})


def test_case_counts():
    assert not made(filter={"attributes": {"type": "A"}}).filter.matches({"type": "a"})
    assert not made(filters=[{"prefix": {"type": "A"}}]).filter.matches({"type": "ab"})
