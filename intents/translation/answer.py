"""The JSON that a language model must answer with: a schema made for one inventory, and its way back to an intent.

The schema offers only keys and values that exist in the snapshot (and the names of unions of countries), so that a
model cannot make up a label. Structured output holds a served model to it; whatever comes is validated all the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from intents.model import labels
from intents.model.intent import IntentMetadata, IntentSpec, PrivacyIntent
from intents.model.refusal import RefusalKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from intents.translation.snapshot import Snapshot

_SPECS = TypeAdapter(tuple[IntentSpec, ...])
_MOST_SPECS = 8
_MOST_PARTS = 6


class AnswerError(ValueError):
    """An answer that is not an intent; the message is what the model is told in the next round."""


def answer_schema(snapshot: Snapshot, unions: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """Return the JSON schema of an answer: ``specs``, or why it is ``refused``."""
    terms = [
        _object(
            {
                "key": {"const": key},
                "op": {"enum": ["in", "not_in"]},
                "values": _array({"enum": values}, 1, len(values)),
            }
        )
        for key in (labels.NAME, *snapshot.keys())
        if (values := _offered(snapshot, key, unions))
    ]
    conjunction = _object({"all_of": _array({"anyOf": terms} if terms else {"enum": []}, 0, _MOST_PARTS)})
    predicate = {"$ref": "#/$defs/predicate"}
    optional = {"anyOf": [predicate, {"type": "null"}]}
    strength = {"enum": ["required", "preferred"]}
    direction = {"enum": ["both", "from_subjects", "to_subjects"]}
    number = {"anyOf": [{"type": "number", "minimum": 0}, {"type": "null"}]}
    rules = {
        "placement": _object(
            {
                "nodes": predicate,
                "at_least": {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]},
                "strength": strength,
            }
        ),
        "spread": _object(
            {
                "relation": {"enum": ["apart", "together"]},
                "others": predicate,
                "topology": {"enum": ["node", "zone", "region", "jurisdiction", "provider"]},
                "strength": strength,
            }
        ),
        "routes": _object(
            {
                "peers": optional,
                "direction": direction,
                "switches": optional,
                "links": optional,
                "through": _array(predicate, 0, _MOST_PARTS),
                "max_latency_ms": number,
                "min_bandwidth_mbps": number,
                "strength": strength,
            }
        ),
        "isolation": _object({"peers": predicate, "direction": direction}),
        "transfer": _object(
            {
                "state": _array({"enum": ["prompts", "kv", "weights"]}, 1, 3),
                "forbidden": {"type": "boolean"},
                "nodes": optional,
                "switches": optional,
                "links": optional,
            }
        ),
    }
    spec = _object({"subjects": predicate} | {name: _array(rule, 0, _MOST_PARTS) for name, rule in rules.items()})
    kinds = [kind.value for kind in RefusalKind if kind not in (RefusalKind.CONFLICT, RefusalKind.UNTRUSTED)]
    refused = _object({"kind": {"enum": kinds}, "message": {"type": "string", "maxLength": 300}})
    return {
        **_object({"refused": {"anyOf": [refused, {"type": "null"}]}, "specs": _array(spec, 0, _MOST_SPECS)}),
        "$defs": {"predicate": _object({"any_of": _array(conjunction, 1, _MOST_PARTS)})},
    }


def read_answer(
    answer: Any, sentence: str, name: str, snapshot: Snapshot, unions: Mapping[str, tuple[str, ...]]
) -> PrivacyIntent | tuple[RefusalKind, str]:
    """Return the intent that an answer holds, or the kind and message of its refusal.

    Raises:
        AnswerError: it is neither.
    """
    if not isinstance(answer, dict) or answer.keys() != {"refused", "specs"}:
        raise AnswerError('the answer must be an object with "refused" and "specs"')
    refused, specs = answer["refused"], answer["specs"]
    if (refused is None) == (not specs):
        raise AnswerError('give either "refused" or "specs": the other is null or empty')
    if refused is not None:
        try:
            return RefusalKind(refused["kind"]), str(refused["message"])
        except (KeyError, TypeError, ValueError):
            raise AnswerError('"refused" needs a known "kind" and a "message"') from None
    try:
        valid = _SPECS.validate_python(_grounded(specs, snapshot, unions))
        return PrivacyIntent(metadata=IntentMetadata(name=name, sentence=sentence), specs=valid)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise AnswerError(f"{where}: {first['msg']}") from None


def _offered(snapshot: Snapshot, key: str, unions: Mapping[str, tuple[str, ...]]) -> list[str]:
    values = snapshot.values(key)
    return sorted({*values, *unions}) if key == labels.JURISDICTION else list(values)


def _grounded(value: Any, snapshot: Snapshot, unions: Mapping[str, tuple[str, ...]]) -> Any:
    """Expand unions, put back names, and refuse what the snapshot does not have."""
    if isinstance(value, list | tuple):
        return [_grounded(each, snapshot, unions) for each in value]
    if not isinstance(value, dict):
        return value
    if "key" not in value or "values" not in value:
        return {key: _grounded(each, snapshot, unions) for key, each in value.items()}
    key, values = value["key"], value["values"]
    if not isinstance(values, list) or not all(isinstance(each, str) for each in values):
        raise AnswerError(f"the values of {key!r} must be a list of strings")
    offered = _offered(snapshot, key, unions)
    unknown = [each for each in values if each not in offered]
    if unknown:
        raise AnswerError(f"{key!r} has no value {unknown[0]!r} here; it has: {', '.join(offered[:20])}")
    if key == labels.NAME:
        values = [snapshot.aliases.get(each, each) for each in values]
    elif key == labels.JURISDICTION:
        values = [code for each in values for code in unions.get(each, (each,))]
    return {**value, "values": list(dict.fromkeys(values))}


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def _array(items: Mapping[str, Any], least: int, most: int) -> dict[str, Any]:
    return {"type": "array", "items": dict(items), "minItems": least, "maxItems": most}
