"""A valid event's data for every type, and data that is wrong in one way each."""

from typing import Any

from runtime.events.catalogue import Type

REPORT: dict[str, Any] = {
    "pipeline": "smollm",
    "change": "change-1",
    "from": "15,15",
    "to": "8,12,10",
    "reason": None,
    "total_ms": 812.4,
    "steps_ms": {"plan": 0.3, "prepare": 700.0, "cutover": 12.5},
    "bytes_moved": 1 << 40,
    "rounds": 3,
    "requests_carried": 2,
    "epoch": 2,
    "request": "1",
    "unchanged": False,
    "pause_ms": 12.5,
}

GOOD: dict[Type, dict[str, Any]] = {
    Type.WORKLOAD_CHANGED: {"pipeline": "smollm", "window_s": 30, "requests_per_s": 1.5, "concurrent_requests": 4},
    Type.RECONFIGURATION_REQUESTED: {
        "pipeline": "smollm",
        "layers": "8@edge-1, 12@edge-2, 10",
        "method": "recompute",
        "fallback": "abort",
        "precision": "bfloat16",
        "generation": 7,
    },
    Type.RECONFIGURATION_PLANNED: {**REPORT, "state": "planned"},
    Type.RECONFIGURATION_COMMITTED: {**REPORT, "state": "committed"},
    Type.RECONFIGURATION_ABORTED: {**REPORT, "state": "aborted", "change": None, "from": None, "reason": "no"},
    Type.STAGE_PREPARE: {"pipeline": "smollm", "stage": 0},
    Type.STAGE_PREPARED: {"pipeline": "smollm", "stage": 1, "node": "edge-1", "change": None, "ms": 0},
    Type.STAGE_RELEASE: {"pipeline": "smollm", "stage": 1, "node": "edge-1"},
    Type.STAGE_RELEASED: {"pipeline": "smollm", "stage": 1, "node": "edge-1", "change": "change-2", "ms": 81.5},
    Type.INTENT_SUBMITTED: {"pipeline": "smollm", "intent": "eu-only", "text": "Keep prompts in the EU."},
    Type.INTENT_DECIDED: {
        "pipeline": "smollm",
        "intent": "eu-only",
        "outcome": "refused",
        "kind": "vacuous",
        "reason": "no node is in the EU",
        "nearest": None,
        "readback": ["Every workload runs in the EU."],
        "placement": {"smollm-stage-0": "edge-1"},
    },
    Type.INTENT_VIOLATED: {"pipeline": "smollm", "intent": "eu-only", "reason": "it moved", "objects": ["us-1"]},
    Type.NODE_JOINED: {"node": "edge-1", "pipeline": "smollm", "weights_were_warm": True},
    Type.NODE_LOST: {"node": "edge-1", "pipeline": "smollm", "reason": "no heartbeat for 5 s"},
}

BAD: list[tuple[Type, dict[str, Any], str, str]] = [
    # type, what is different, where it is wrong, what the message says
    (Type.WORKLOAD_CHANGED, {"window_s": 0}, "data.window_s", "more than 0"),
    (Type.WORKLOAD_CHANGED, {"concurrent_requests": 1.5}, "data.concurrent_requests", "integer"),
    (Type.RECONFIGURATION_REQUESTED, {"layers": "8,x"}, "data.layers", "such as 8,12,10"),
    (Type.RECONFIGURATION_REQUESTED, {"layers": ""}, "data.layers", "such as 8,12,10"),
    (Type.RECONFIGURATION_REQUESTED, {"layers": "8,12\n"}, "data.layers", "wrong form"),
    (Type.RECONFIGURATION_REQUESTED, {"layers": "8," * 6000 + "8"}, "data.layers", "maxLength 10000"),
    (Type.RECONFIGURATION_REQUESTED, {"layers": "8@-a"}, "data.layers", "15@edge-1"),
    (Type.RECONFIGURATION_REQUESTED, {"layers": 15}, "data.layers", "must be of the type string"),
    (Type.RECONFIGURATION_REQUESTED, {"layer": "15"}, "data", "did you mean 'layers'?"),
    (Type.RECONFIGURATION_REQUESTED, {"method": "copy"}, "data.method", "pre_copy, stop_and_copy, recompute"),
    (Type.RECONFIGURATION_REQUESTED, {"fallback": "no"}, "data.fallback", "abort, recompute"),
    (Type.RECONFIGURATION_REQUESTED, {"precision": "int8"}, "data.precision", "float32, bfloat16, float16"),
    (Type.RECONFIGURATION_REQUESTED, {"generation": 0}, "data.generation", "at least 1"),
    (Type.RECONFIGURATION_REQUESTED, {"pipeline": "Smol LM"}, "data.pipeline", "lower-case"),
    (Type.RECONFIGURATION_PLANNED, {"state": "committed"}, "data.state", "must be 'planned'"),
    (Type.RECONFIGURATION_COMMITTED, {"steps_ms": {"lunch": 1}}, "data.steps_ms", "no field 'lunch'"),
    (Type.RECONFIGURATION_ABORTED, {"bytes_moved": -1}, "data.bytes_moved", "at least 0"),
    (Type.STAGE_PREPARE, {"stage": "1"}, "data.stage", "integer"),
    (Type.STAGE_PREPARED, {"change": 1}, "data.change", "string or null"),
    (Type.STAGE_RELEASE, {"node": "edge_1"}, "data.node", "wrong form"),
    (Type.STAGE_RELEASED, {"ms": True}, "data.ms", "number"),
    (Type.INTENT_SUBMITTED, {"text": ""}, "data.text", "in the user's words"),
    (Type.INTENT_SUBMITTED, {"specs": ["x"]}, "data.specs[0]", "must be of the type object"),
    (Type.INTENT_DECIDED, {"outcome": "maybe"}, "data.outcome", "must be one of ok, refused"),
    (Type.INTENT_DECIDED, {"placement": {"a": 1}}, "data.placement.a", "must be of the type string"),
    (Type.INTENT_VIOLATED, {"objects": ["us-1", 2]}, "data.objects[1]", "must be of the type string"),
    (Type.NODE_JOINED, {"weights_were_warm": "yes"}, "data.weights_were_warm", "boolean"),
    (Type.NODE_LOST, {"reason": None}, "data.reason", "string"),
]
