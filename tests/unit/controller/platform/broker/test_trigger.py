"""Knative Trigger objects, read for one machine."""

import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from controller.platform.broker.trigger import Delivery, TriggerError, parse_trigger, read_triggers

SERVICES = {"reconfigure": "http://127.0.0.1:8081"}
CRDS = os.environ.get("MIDSTREAM_CRDS") or Path(__file__).parents[6] / "shared" / "crds"
CRD = Path(CRDS) / "knative-eventing-trigger.yaml"
FULL = """\
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: reconfigure}
---
apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata:
  name: reconfigure
  labels: {app: midstream}
spec:
  broker: default
  filters:
    - exact: {type: dev.midstream.reconfiguration.requested}
    - not:
        any:
          - prefix: {source: /test}
          - suffix: {subject: -old}
  subscriber:
    ref: {apiVersion: serving.knative.dev/v1, kind: Service, name: reconfigure}
    uri: /go
  delivery:
    retry: 5
    backoffPolicy: linear
    backoffDelay: PT0.5S
    timeout: PT1M30S
    retryAfterMax: PT10S
    format: json
    deadLetterSink: {uri: http://127.0.0.1:9/dead}
"""


def manifest(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "eventing.knative.dev/v1",
        "kind": "Trigger",
        "metadata": {"name": "a"},
        "spec": {"broker": "default", "subscriber": {"uri": "http://127.0.0.1:1"}, **spec},
    }


def test_a_manifest_for_a_cluster_works_here(tmp_path: Path):
    file = tmp_path / "triggers.yaml"
    file.write_text(FULL)
    (trigger,) = read_triggers(file, SERVICES)
    assert (trigger.name, trigger.subscriber) == ("reconfigure", "http://127.0.0.1:8081/go")
    assert trigger.delivery == Delivery(5, True, 0.5, 90.0, 10.0, "http://127.0.0.1:9/dead", True)
    wanted = {"type": "dev.midstream.reconfiguration.requested", "source": "/s", "subject": "new"}
    assert trigger.filter.matches(wanted)
    assert not trigger.filter.matches({**wanted, "subject": "so-old"})


def test_the_upstream_schema_takes_what_is_taken_here():
    if not CRD.exists():
        pytest.skip(f"Knative's schema is not there: {CRD}")
    version = yaml.safe_load(CRD.read_text())["spec"]["versions"][0]
    schema = version["schema"]["openAPIV3Schema"]
    known = schema["properties"]["spec"]["properties"]
    ours = [yaml.safe_load(part) for part in FULL.split("---")][1]
    parsed = parse_trigger(ours, SERVICES)
    for one in (ours, dict(parsed.manifest), manifest(filter={"attributes": {"type": ""}})):
        jsonschema.validate(one, schema)
        assert set(one["spec"]) <= set(known)
    # Every field that upstream has is read or refused here with a message of its own, not as a misspelling.
    assert set(known) == {"broker", "brokerRef", "delivery", "filter", "filters", "subscriber"}
    assert set(known["filters"]["items"]["properties"]) == {"all", "any", "cesql", "exact", "not", "prefix", "suffix"}


def test_without_delivery_it_is_knatives_default_and_with_it_no_retry_unless_said():
    assert parse_trigger(manifest(), {}).delivery == Delivery(retries=10, linear=False, backoff_s=0.2)
    assert parse_trigger(manifest(delivery={"format": "binary"}), {}).delivery.retries == 0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"filers": []}, "spec.filers is no field that is known here"),
        ({"filter": {"attributes": {"type": 5}}}, "spec.filter.attributes.type is 5"),
        ({"filters": [{}]}, r"spec.filters\[0\] is {}: a filter has exactly one of"),
        ({"filters": [{"exact": {"type": "a"}, "prefix": {"type": "a"}}]}, "exactly one of"),
        ({"filters": [{"exact": {"type": ""}}]}, r"spec.filters\[0\].exact.type is ''"),
        ({"filters": [{"any": []}]}, r"spec.filters\[0\].any is \[\]"),
        ({"filters": [{"cesql": "type = 'a'"}]}, "cesql is not supported here"),
        ({"subscriber": {}}, "spec.subscriber: has neither uri nor ref"),
        ({"subscriber": {"uri": "127.0.0.1:80"}}, "is no address such as"),
        ({"subscriber": {"uri": "http://[::1"}}, "is no address such as"),
        ({"subscriber": {"uri": "http://x", "audience": "me"}}, "spec.subscriber.audience"),
        ({"subscriber": {"ref": {"kind": "Service", "name": "x"}}}, "no Service 'x' runs here; known are: reconfigure"),
        ({"subscriber": {"ref": {"kind": "Channel", "name": "x"}}}, "spec.subscriber.ref.kind is 'Channel'"),
        ({"delivery": {"retry": -1}}, "spec.delivery.retry is -1"),
        ({"delivery": {"retry": "3"}}, "spec.delivery.retry is '3'"),
        ({"delivery": {"backoffPolicy": "random"}}, "spec.delivery.backoffPolicy is 'random'"),
        ({"delivery": {"timeout": "PT0S"}}, "timeout must be longer than nothing"),
        ({"delivery": {"deadLetterSink": {}}}, "spec.delivery.deadLetterSink: has neither"),
    ],
)
def test_a_wrong_field_is_named_with_its_value_and_what_to_do(spec: dict[str, Any], message: str):
    with pytest.raises(TriggerError, match=message):
        parse_trigger(manifest(**spec), SERVICES)


@pytest.mark.parametrize("text", ["5s", "P", "PT", "5", 5, "-PT1S", "P1Y", "P1M", "PT1S ", "pt1s", "P1DT", ""])
def test_a_duration_is_iso_8601(text: object):
    with pytest.raises(TriggerError, match=r"spec.delivery.backoffDelay is .* no ISO 8601 duration; write"):
        parse_trigger(manifest(delivery={"backoffDelay": text}), {})


@pytest.mark.parametrize(("text", "seconds"), [("PT0.2S", 0.2), ("PT1M", 60), ("P1DT1H", 90_000), ("PT0S", 0)])
def test_durations_are_seconds(text: str, seconds: float):
    assert parse_trigger(manifest(delivery={"backoffDelay": text}), {}).delivery.backoff_s == seconds


def test_a_password_is_refused_and_not_repeated():
    with pytest.raises(TriggerError, match="has a user or a password") as refused:
        parse_trigger(manifest(subscriber={"uri": "http://me:secret@127.0.0.1"}), {})
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "wrong", [None, [], "text", {}, {**manifest(), "kind": "Service"}, {**manifest(), "metadata": {}}]
)
def test_anything_else_is_no_trigger(wrong: object):
    with pytest.raises(TriggerError):
        parse_trigger(wrong, {})


def test_nesting_has_an_end():
    deep: dict[str, Any] = {"exact": {"type": "a"}}
    for _ in range(5000):
        deep = {"not": deep}
    with pytest.raises(TriggerError, match="nested too deeply"):
        parse_trigger(manifest(filters=[deep]), {})


class TestFiles:
    def read(self, folder: Path, text: str) -> str:
        file = folder / "t.yaml"
        file.write_text(text)
        with pytest.raises(TriggerError) as refused:
            read_triggers(file, SERVICES)
        return str(refused.value).replace(str(folder), "")

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("retry: 5", "retry: five", "/t.yaml:22: spec.delivery.retry is 'five'"),
            ("exact: {", "exakt: {", "/t.yaml:13: spec.filters[0].exakt is no field"),
            (
                "name: reconfigure}\n    uri",
                "name: other}\n    uri",
                "/t.yaml:19: spec.subscriber.ref.name: no Service",
            ),
            ("  broker: default", "  broker: [", "/t.yaml:13: not YAML"),
        ],
    )
    def test_the_line_is_named(self, tmp_path: Path, old: str, new: str, message: str):
        assert old in FULL
        assert self.read(tmp_path, FULL.replace(old, new)).startswith(message)

    def test_a_file_without_a_trigger_is_no_file_of_triggers(self, tmp_path: Path):
        assert self.read(tmp_path, "kind: Service\n") == "/t.yaml: has no object of kind Trigger"
        assert self.read(tmp_path, "") == "/t.yaml: has no object of kind Trigger"

    def test_no_tag_makes_an_object(self, tmp_path: Path):
        assert "could not determine a constructor" in self.read(tmp_path, "!!python/object/apply:os.abort []\n")

    def test_a_file_that_is_not_there_is_named(self, tmp_path: Path):
        with pytest.raises(TriggerError, match=r"missing.yaml: cannot be read"):
            read_triggers(tmp_path / "missing.yaml", {})


class TestBackOff:
    def test_exponential_doubles_from_the_first_retry_on_and_has_an_end(self):
        delays = [Delivery(backoff_s=0.2).delay_s(made) for made in (0, 1, 2, 3, 10**6)]
        assert delays == [0.2, 0.4, 0.8, 1.6, 3600.0]

    def test_linear_counts_as_knative_does(self):
        assert [Delivery(linear=True, backoff_s=0.5).delay_s(made) for made in range(4)] == [0.0, 0.5, 1.0, 1.5]

    def test_what_the_subscriber_asks_for_counts_if_it_is_longer_up_to_a_bound(self):
        delivery = Delivery(backoff_s=1.0, most_retry_after_s=60.0)
        assert [delivery.delay_s(0, asked) for asked in (0.5, 7.0, 1e18)] == [1.0, 7.0, 60.0]
