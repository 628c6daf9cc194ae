"""The types, their schemas, the classes and the page agree."""

import re
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator

import runtime.events
from runtime.events import catalogue
from runtime.events.catalogue import IntentDecided, NodeJoined, NodeLost, ReconfigurationReport, StageReport, Type
from runtime.layout import Layout
from runtime.migration.protocol import Fallback, Method, Step
from tests.unit.runtime.events.samples import BAD, GOOD

FOLDER = Path(runtime.events.__file__).parent
CLASSES = {
    Type.RECONFIGURATION_PLANNED: ReconfigurationReport,
    Type.RECONFIGURATION_COMMITTED: ReconfigurationReport,
    Type.RECONFIGURATION_ABORTED: ReconfigurationReport,
    Type.STAGE_PREPARED: StageReport,
    Type.STAGE_RELEASED: StageReport,
    Type.INTENT_DECIDED: IntentDecided,
    Type.NODE_JOINED: NodeJoined,
    Type.NODE_LOST: NodeLost,
}


def fields(kind: Type) -> set[str]:
    schema = catalogue.schema(kind)
    return {name if name in schema["required"] else f"{name}?" for name in schema["properties"]}


def objects(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """All parts of a schema that describe an object, and the whole."""
    return [schema, *(inner for p in schema["properties"].values() if "properties" in p for inner in objects(p))]


class TestSchemas:
    def test_there_is_one_for_each_type_and_no_other(self):
        assert {file.name for file in (FOLDER / "schemas").iterdir()} == {f"{kind}.json" for kind in Type}

    @pytest.mark.parametrize("kind", Type)
    def test_each_is_one_of_2020_12_named_by_the_dataschema(self, kind: Type):
        schema = catalogue.schema(kind)
        Draft202012Validator.check_schema(schema)
        assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
        assert schema["$id"] == kind.dataschema == f"https://midstream.dev/schemas/{kind}/v1.json"

    @pytest.mark.parametrize("kind", Type)
    def test_each_says_what_every_field_means_and_allows_no_other(self, kind: Type):
        for part in objects(catalogue.schema(kind)):
            assert part["description"]
            assert part["additionalProperties"] is False
            assert all(field["description"].endswith(".") for field in part["properties"].values())
        assert kind.subject_field in catalogue.schema(kind)["required"]

    def test_words_are_those_of_the_protocol(self):
        wanted = catalogue.schema(Type.RECONFIGURATION_REQUESTED)["properties"]
        assert wanted["method"]["enum"] == [str(method) for method in Method]
        assert wanted["fallback"]["enum"] == [str(fallback) for fallback in Fallback]
        for kind in (Type.RECONFIGURATION_PLANNED, Type.RECONFIGURATION_COMMITTED, Type.RECONFIGURATION_ABORTED):
            steps = catalogue.schema(kind)["properties"]["steps_ms"]["properties"]
            assert set(steps) == set(Step) - {Step.COMMITTED, Step.ABORTED}

    @pytest.mark.parametrize("kind", CLASSES)
    def test_classes_have_the_fields_of_the_schemas(self, kind: Type):
        assert {field.encode_name for field in msgspec.structs.fields(CLASSES[kind])} == set(
            catalogue.schema(kind)["properties"]
        )
        assert msgspec.to_builtins(msgspec.convert(GOOD[kind], CLASSES[kind])) == GOOD[kind]

    def test_the_page_lists_them_with_their_fields(self):
        page = (FOLDER / "README.md").read_text("utf-8")
        rows = dict(re.findall(r"^\| `(dev\.midstream\.[a-z.]+)` \|[^|]*\| ([^|]*) \|$", page, re.MULTILINE))
        assert list(rows) == [str(kind) for kind in Type]
        rows = {
            kind: rows[Type.RECONFIGURATION_PLANNED] if row == "as `planned`" else row for kind, row in rows.items()
        }
        assert {kind: set(re.findall(r"`([^`]+)`", row)) for kind, row in rows.items()} == {
            str(kind): fields(kind) for kind in Type
        }


class TestData:
    @pytest.mark.parametrize("kind", Type)
    def test_what_is_right_is_taken(self, kind: Type):
        assert catalogue.problem(kind, GOOD[kind]) is None

    @pytest.mark.parametrize("kind", Type)
    def test_nothing_that_is_required_may_be_missing(self, kind: Type):
        for name in catalogue.schema(kind)["required"]:
            problem = catalogue.problem(kind, {key: value for key, value in GOOD[kind].items() if key != name})
            assert problem is not None
            assert (problem.where, f"data.{name} is missing" in problem.message) == (f"data.{name}", True)

    @pytest.mark.parametrize("kind", Type)
    def test_no_field_may_be_strange(self, kind: Type):
        problem = catalogue.problem(kind, {**GOOD[kind], "colour": "red"})
        assert problem is not None
        assert "data has no field 'colour'; known are: " in problem.message

    @pytest.mark.parametrize(("kind", "changes", "where", "says"), BAD)
    def test_what_is_wrong_is_named(self, kind: Type, changes: dict[str, Any], where: str, says: str):
        problem = catalogue.problem(kind, {**GOOD[kind], **changes})
        assert problem is not None
        assert problem.where == where
        assert says in problem.message
        assert len(problem.message) < 400

    def test_a_misspelt_field_is_told_rather_than_the_missing_one(self):
        problem = catalogue.problem(Type.RECONFIGURATION_REQUESTED, {"pipeline": "smollm", "layer": "15,15"})
        assert problem is not None
        assert "did you mean 'layers'?" in problem.message

    @pytest.mark.parametrize("text", ["1", "8,12,10", " 8 , 12@edge-1 ,10@cloud.eu ", "1@a", "15@edge-1,15@edge-2"])
    def test_a_layout_that_passes_can_be_parsed(self, text: str):
        assert catalogue.problem(Type.RECONFIGURATION_REQUESTED, {"pipeline": "p", "layers": text}) is None
        total = sum(int(stage.split("@")[0]) for stage in text.split(","))
        assert Layout.parse(text, total).total_layers == total

    def test_a_pattern_is_no_way_to_keep_a_core_busy(self):
        texts = ["8@" + "a" * 60_000 + "!", " " * 60_000, "8@a-" + "-" * 60_000, "8," * 30_000 + "!"]
        begun_at = time.perf_counter()
        for text in texts:
            assert catalogue.problem(Type.RECONFIGURATION_REQUESTED, {"pipeline": text, "layers": text}) is not None
        assert time.perf_counter() - begun_at < 5.0
