"""CloudEvents of any type, in and out."""

import base64
import json

import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_http_event, to_binary_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given
from hypothesis import strategies as st

from controller.platform.broker.wire import STRUCTURED, Event, MalformedEvent, has_event, read

BINARY = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/s", "ce-type": "t"}
ATTRIBUTES = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}


def binary(body: bytes = b"", **headers: str) -> Event:
    return read({**BINARY, **{name.replace("_", "-"): text for name, text in headers.items()}}.items(), body)


def structured(document: object = None, **attributes: object) -> Event:
    body = document if isinstance(document, bytes) else json.dumps({**ATTRIBUTES, **attributes}).encode()
    return read([("Content-Type", STRUCTURED)], body)


class TestBinary:
    def test_attributes_and_data_are_kept_as_they_came(self):
        body = b'{"a" :  1.10}\n'
        event = binary(body, content_type="application/json; charset=utf-8", ce_subject="x%20y%C3%A4", ce_myext="v")
        assert event.attributes["subject"] == "x y\u00e4"
        assert event.attributes["myext"] == "v"
        headers, sent = event.to_binary()
        assert sent == body
        assert headers["ce-subject"] == "x%20y%C3%A4"
        assert headers["content-type"] == "application/json; charset=utf-8"
        assert "ce-time" not in headers

    def test_a_time_keeps_its_nanoseconds(self):
        time = "2026-01-31T12:00:00.123456789Z"
        assert binary(ce_time=time).to_binary()[0]["ce-time"] == time

    @pytest.mark.parametrize(
        ("headers", "message"),
        [
            ({"ce_id": ""}, "'id' must not be None or empty"),
            ({"ce_specversion": "0.3"}, "must be '1.0'"),
            ({"ce_source": "%ff"}, "not UTF-8"),
            ({"ce_source": "\u00e4"}, "must be ASCII"),
            ({"ce_subject": "a%0d%0aevil: 1"}, "control character"),
            ({"ce_subject": ""}, "'subject' must not be empty"),
            ({"ce_bad_name": "1"}, "no name of an attribute"),
            ({"ce_data": "1"}, "no name of an attribute"),
            ({"ce_datacontenttype": "text/plain"}, "content-type says it"),
            ({"content_type": "json"}, "no content type"),
            ({"content_type": "a/b; \u00e4"}, "no content type"),
            ({"ce_time": "yesterday"}, "is none such as"),
            ({"ce_time": "2026-02-31T12:00:00Z"}, "is none such as"),
            ({"ce_time": "2026-01-31T12:00:00"}, "is none such as"),
            ({"ce_ext": "x" * 9000}, "more than 8192 bytes"),
        ],
    )
    def test_what_breaks_the_rules_is_refused_with_the_reason(self, headers: dict[str, str], message: str):
        with pytest.raises(MalformedEvent, match=message.replace("(", r"\(")):
            binary(**headers)

    @pytest.mark.parametrize("missing", BINARY)
    def test_every_required_attribute_is_required(self, missing: str):
        with pytest.raises(MalformedEvent, match=missing.removeprefix("ce-")):
            read([(name, text) for name, text in BINARY.items() if name != missing], b"")

    def test_a_header_that_is_there_twice_is_refused(self):
        with pytest.raises(MalformedEvent, match="ce-id is there twice"):
            read([*BINARY.items(), ("CE-ID", "2")], b"")

    def test_any_other_request_is_no_event(self):
        with pytest.raises(MalformedEvent, match="this is no CloudEvent"):
            read([("content-type", "application/json")], b"{}")


class TestStructured:
    def test_json_data_is_kept_byte_for_byte(self):
        event = structured(
            b'{"specversion":"1.0","id":"1","source":"/s","type":"t","data":[1.10,  12345678901234567890]}'
        )
        assert event.data == b"[1.10,  12345678901234567890]"
        assert event.attributes["datacontenttype"] == "application/json"

    def test_text_and_bytes_are_what_they_are(self):
        assert structured(datacontenttype="text/plain", data="h\u00e4").data == "h\u00e4".encode()
        assert structured(data_base64=base64.b64encode(b"\x00\xff").decode()).data == b"\x00\xff"

    def test_numbers_and_truths_become_text_and_null_is_nothing(self):
        event = structured(count=3, ready=True, subject=None, data=None)
        assert (event.attributes["count"], event.attributes["ready"]) == ("3", "true")
        assert "subject" not in event.attributes
        assert event.data == b""

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            (b"", "no JSON object"),
            (b"[]", "no JSON object"),
            (b'{"id": NaN}', "no JSON object"),
            (b'{"id": "\xff"}', "no JSON object"),
            (b'{"data": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
            (b'{"data": 1, "data_base64": "AA=="}', "not both"),
            (b'{"data_base64": 5}', "must be text"),
            (b'{"data_base64": "&&"}', "no base64"),
            (b'{"id": {"a": 1}}', "must be text"),
            (b'{"id": 1.5}', "must be text"),
            (b'{"bad\\n": "x"}', "no name of an attribute"),
        ],
    )
    def test_what_cannot_be_read_is_refused_with_the_reason(self, body: bytes, message: str):
        with pytest.raises(MalformedEvent, match=message):
            structured(body)

    def test_batches_are_refused(self):
        with pytest.raises(MalformedEvent, match="batch"):
            read([("content-type", "application/cloudevents-batch+json")], b"[]")


@given(st.binary(max_size=300))
def test_no_body_breaks_the_reader(body: bytes):
    with pytest.raises(MalformedEvent):
        read([("content-type", STRUCTURED)], body)


@given(st.lists(st.tuples(st.text(max_size=8).map("ce-".__add__), st.text(max_size=20)), max_size=8))
def test_no_headers_break_the_reader(headers: list[tuple[str, str]]):
    try:
        event = read([*BINARY.items(), *headers], b"x")
    except MalformedEvent:
        return
    sent, _ = event.to_binary()
    assert all(text.isascii() and text.isprintable() for text in sent.values())


TEXT = st.text(st.characters(exclude_categories=("Cc", "Cs", "Cn")), min_size=1, max_size=20)


@given(TEXT, TEXT, st.dictionaries(st.sampled_from(["a", "b1", "traceparent"]), TEXT), st.binary(max_size=50))
def test_an_event_survives_both_modes(name: str, subject: str, extensions: dict[str, str], data: bytes):
    attributes = {**ATTRIBUTES, "id": name, "subject": subject, **extensions}
    event = Event({**attributes, "datacontenttype": "application/octet-stream"}, data)
    for headers, body in (event.to_binary(), event.to_structured()):
        assert read(headers.items(), body) == event


@pytest.mark.parametrize("write", [to_binary_event, to_structured_event])
def test_the_official_library_and_this_understand_each_other(write):
    original = CloudEvent({"type": "t", "source": "/s", "subject": "h\u00e4"}, {"a": [1, None]})
    message = write(original)
    event = read(message.headers.items(), message.body)
    assert json.loads(event.data) == {"a": [1, None]}
    for headers, body in (event.to_binary(), event.to_structured()):
        back = from_http_event(HTTPMessage(headers, body))
        assert (back.get_id(), back.get_subject(), back.get_data()) == (original.get_id(), "h\u00e4", {"a": [1, None]})


def test_json_that_is_none_goes_out_in_base64():
    event = Event({**ATTRIBUTES, "datacontenttype": "application/json"}, b"{NaN")
    assert json.loads(event.to_json())["data_base64"] == base64.b64encode(b"{NaN").decode()


def test_only_what_says_so_is_taken_for_an_event():
    assert has_event({"ce-specversion": "1.0"})
    assert has_event({"content-type": "application/cloudevents+json; charset=utf-8"})
    assert not has_event({"content-type": "application/json", "ce-id": "1"})
