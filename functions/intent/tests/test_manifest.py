"""func.yaml is one that func takes."""

import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

FOLDER = Path(__file__).resolve().parents[1]
CRDS = os.environ.get("MIDSTREAM_CRDS") or FOLDER.parents[1].parent / "shared" / "crds"
SCHEMA = Path(CRDS) / "func_yaml-schema.json"


@pytest.fixture
def manifest() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((FOLDER / "func.yaml").read_text())
    return {**loaded, "created": loaded["created"].isoformat()}  # YAML reads a time where JSON has text


def test_the_manifest_keeps_to_funcs_schema(manifest: dict[str, Any]):
    if not SCHEMA.exists():
        pytest.skip(f"func's schema is not at {SCHEMA}")
    jsonschema.validate(manifest, json.loads(SCHEMA.read_text()), jsonschema.Draft4Validator)


def test_the_manifest_says_what_func_must_know(manifest: dict[str, Any]):
    assert (manifest["runtime"], manifest["invoke"]) == ("python", "cloudevent")
    assert manifest["deploy"]["healthEndpoints"] == {
        "liveness": "/health/liveness",
        "readiness": "/health/readiness",
    }


def test_the_token_comes_from_a_secret(manifest: dict[str, Any]):
    envs = {env["name"]: env["value"] for env in manifest["run"]["envs"]}
    assert envs["MIDSTREAM_CONTROL_TOKEN"] == "{{ secret:midstream-control:token }}"
