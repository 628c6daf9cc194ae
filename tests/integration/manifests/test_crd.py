"""The LLMPipeline of clusters: the same object as controller.platform.llm_pipeline reads, with a status of its own."""

from __future__ import annotations

from typing import Any

import pytest

from controller.platform.llm_pipeline import LLMPipeline
from tests.integration.manifests.conftest import CRD, MANIFESTS
from tests.support.api_server import ApiServer, load_objects

API_VERSION = "midstream.dev/v1alpha1"


def _crd_schema() -> dict[str, Any]:
    (version,) = load_objects(CRD)[0]["spec"]["versions"]
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return schema


def _python_schema() -> dict[str, Any]:
    whole = LLMPipeline.model_json_schema(by_alias=True)

    def resolved(schema: dict[str, Any]) -> dict[str, Any]:
        """Return the schema without references and without null, which YAML leaves out."""
        if "$ref" in schema:
            return resolved(whole["$defs"][schema["$ref"].rpartition("/")[2]])
        choices = [choice for choice in schema.get("anyOf", []) if choice != {"type": "null"}]
        if len(choices) == 1:
            return resolved(choices[0])
        inner = {name: resolved(part) for name, part in schema.get("properties", {}).items()}
        items = {"items": resolved(schema["items"])} if "items" in schema else {}
        return {**schema, **({"properties": inner} if inner else {}), **items}

    return resolved(whole["properties"]["spec"])


def _facts(schema: dict[str, Any], path: str = "spec") -> dict[str, dict[str, Any]]:
    """Return what both kinds of schema say about each field, by its path."""
    words = ("type", "enum", "minimum", "maximum", "minItems", "maxItems")
    facts = {path: {word: schema[word] for word in words if word in schema}}
    for name, part in schema.get("properties", {}).items():
        facts.update(_facts(part, f"{path}.{name}"))
    if "items" in schema:
        facts.update(_facts(schema["items"], f"{path}[]"))
    return facts


def test_it_has_the_fields_of_the_python_model_and_no_others() -> None:
    assert set(_facts(_crd_schema())) == set(_facts(_python_schema()))


def test_it_has_the_choices_and_bounds_of_the_python_model() -> None:
    assert _facts(_crd_schema()) == _facts(_python_schema())


def test_every_sample_is_one_for_the_python_model_too() -> None:
    samples = [obj for file in (MANIFESTS / "samples").glob("*.yaml") for obj in load_objects(file)]
    pipelines = [obj for obj in samples if obj["kind"] == "LLMPipeline"]
    assert len(pipelines) >= 4
    for pipeline in pipelines:
        assert LLMPipeline.parse(pipeline).to_object() == pipeline


def _pipeline(name: str, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": API_VERSION, "kind": "LLMPipeline", "metadata": {"name": name}, "spec": spec}


def _status(pipeline: dict[str, Any], **status: Any) -> dict[str, Any]:
    return {**{key: pipeline[key] for key in ("apiVersion", "kind", "metadata")}, "status": status}


def _ready(**fields: Any) -> dict[str, Any]:
    return {
        "type": "Ready",
        "status": "True",
        "reason": "Serving",
        "message": "serves",
        "lastTransitionTime": "2026-01-02T03:04:05Z",
        **fields,
    }


SERVING = {
    "phase": "Serving",
    "epoch": 3,
    "observedGeneration": 1,
    "layout": "15@edge-1,15",
    "stageCount": 2,
    "selector": "midstream.dev/pipeline=smollm,midstream.dev/role=stage",
    "lastPauseMs": 12.5,
    "stages": [{"index": 0, "layers": "0-14", "node": "edge-1"}, {"index": 1, "layers": "15-29", "node": "local"}],
    "lastChange": {"id": "change-2", "state": "committed", "totalMs": 143.2, "bytesMoved": 0},
    "conditions": [_ready()],
}


def test_a_status_is_kept_apart_from_the_spec(api_server: ApiServer) -> None:
    pipeline = _pipeline("with-status", auto={"stages": 2})
    made = api_server.apply({**pipeline, "status": SERVING}).json()
    assert "status" not in made
    told = api_server.apply(_status(pipeline, **SERVING), manager="operator", subresource="status").json()
    assert told["status"] == SERVING
    assert told["metadata"]["generation"] == made["metadata"]["generation"] == 1
    pipeline["spec"]["auto"]["stages"] = 3
    changed = api_server.apply(pipeline).json()
    assert changed["metadata"]["generation"] == 2
    assert changed["status"] == SERVING


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("phase", "Happy", 'Unsupported value: "Happy": supported values: "Pending", "Starting", "Serving"'),
        ("epoch", -1, "status.epoch: Invalid value: -1: epoch in body should be greater than or equal to 0"),
        ("conditions", [{"type": "Ready", "status": "True"}], "status.conditions[0].reason: Required value"),
        ("conditions", [_ready(status="Yes")], 'Unsupported value: "Yes"'),
        (
            "stages",
            [{"index": 0, "layers": "0-1"}, {"index": 0, "layers": "2-3"}],
            "duplicate entries for key [index=0]",
        ),
        ("sizes", 1, ".status.sizes: field not declared in schema"),
    ],
)
def test_a_status_that_is_none_is_refused(api_server: ApiServer, field: str, value: Any, message: str) -> None:
    pipeline = _pipeline("bad-status")
    api_server.apply(pipeline)
    answer = api_server.apply(_status(pipeline, **{field: value}), subresource="status")
    assert answer.is_error
    assert message in answer.json()["message"]


def test_it_scales(api_server: ApiServer) -> None:
    pipeline = _pipeline("scaled", auto={"stages": 2})
    api_server.apply(pipeline)
    api_server.apply(_status(pipeline, **SERVING), subresource="status")
    scale = api_server.get(pipeline, "scale").json()
    assert scale["spec"] == {"replicas": 2}
    assert scale["status"] == {"replicas": 2, "selector": SERVING["selector"]}
    scale["spec"]["replicas"] = 4
    answer = api_server.http.put(f"{api_server.path(pipeline)}/scale", json=scale)
    assert answer.is_success, answer.text
    assert api_server.get(pipeline).json()["spec"]["auto"] == {"stages": 4}


def test_listed_stages_do_not_scale(api_server: ApiServer) -> None:
    pipeline = _pipeline("listed", stages=[{"layers": 15}, {"layers": 15}])
    api_server.apply(pipeline)
    assert '".spec.auto.stages" does not exist' in api_server.get(pipeline, "scale").json()["message"]
    scale = {
        "apiVersion": "autoscaling/v1",
        "kind": "Scale",
        "metadata": {"name": "listed", "namespace": "default"},
        "spec": {"replicas": 3},
    }
    answer = api_server.http.put(f"{api_server.path(pipeline)}/scale", json=scale)
    assert answer.is_client_error, answer.text
    assert "stages and auto are exclusive" in answer.json()["message"]


def test_a_list_shows_what_matters(api_server: ApiServer) -> None:
    pipeline = _pipeline("shown")
    api_server.apply(pipeline)
    api_server.apply(_status(pipeline, **SERVING), subresource="status")
    table = api_server.http.get(
        api_server.path(pipeline), headers={"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}
    ).json()
    names = [column["name"] for column in table["columnDefinitions"]]
    cells = dict(zip(names, table["rows"][0]["cells"], strict=True))
    assert cells.pop("Age")
    assert cells == {
        "Name": "shown",
        "Phase": "Serving",
        "Layout": "15@edge-1,15",
        "Epoch": 3,
        "Ready": "True",
        "Last change": "committed",
        "Reason": "Serving",
    }


def test_two_managers_of_one_field_are_told_of_each_other(api_server: ApiServer) -> None:
    pipeline = _pipeline("contended", auto={"stages": 2})
    api_server.apply(pipeline, manager="alice")
    pipeline["spec"]["auto"]["stages"] = 3
    answer = api_server.apply(pipeline, manager="bob")
    assert answer.status_code == 409
    assert 'conflict with "alice": .spec.auto.stages' in answer.json()["message"]
    assert api_server.apply(pipeline, manager="bob", force=True).is_success
