"""Events in and out, in both modes, and everything that is refused."""

import base64
import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from runtime.events.catalogue import Type
from runtime.events.envelope import MOST_BYTES, Event, EventError, make, read_cloudevent, read_http
from tests.unit.runtime.events.samples import GOOD

REQUESTED = Type.RECONFIGURATION_REQUESTED
BINARY = {
    "ce-specversion": "1.0",
    "ce-id": "1",
    "ce-source": "/me",
    "ce-subject": "smollm",
    "ce-type": str(REQUESTED),
    "content-type": "application/json",
}
DATA = {"pipeline": "smollm", "layers": "8,12,10"}
BODY = json.dumps(DATA).encode()
STRUCTURED = {"content-type": "application/cloudevents+json"}
DOCUMENT: dict[str, Any] = {
    "specversion": "1.0",
    "id": "1",
    "source": "/me",
    "subject": "smollm",
    "type": str(REQUESTED),
    "data": DATA,
}
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def refusal(headers: dict[str, str], body: bytes) -> EventError:
    with pytest.raises(EventError) as caught:
        read_http(headers, body)
    assert caught.value.as_error_body()["error"]["message"]
    return caught.value


def binary(**attributes: str) -> dict[str, str]:
    return {**BINARY, **{f"ce-{name}": value for name, value in attributes.items()}}


def structured(**changes: Any) -> bytes:
    return json.dumps({name: value for name, value in {**DOCUMENT, **changes}.items() if value is not ...}).encode()


printable = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Cn", "Zs", "Zl", "Zp"), exclude_characters="\ufffd"),
    min_size=1,
    max_size=60,
)
times = st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=-5))]))


@st.composite
def events(draw: st.DrawFn) -> Event:
    kind = draw(st.sampled_from(Type))
    made = make(
        kind,
        draw(printable),
        GOOD[kind][kind.subject_field],
        GOOD[kind],
        id=draw(printable),
        traceparent=draw(st.sampled_from([None, TRACE])),
        time=draw(times),
    )
    extensions = draw(st.dictionaries(st.from_regex(r"x[a-z0-9]{0,20}", fullmatch=True), printable, max_size=4))
    headers, body = made.to_http_binary()
    return read_http({**headers, **{f"ce-{name}": _percent(value) for name, value in extensions.items()}}, body)


def _percent(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode())


class TestRoundTrips:
    @given(events())
    def test_an_event_comes_back_from_both_modes_and_the_library(self, event: Event):
        for headers, body in (event.to_http_binary(), event.to_http_structured()):
            assert read_http(headers, body) == event
            assert all(value.isascii() and value.isprintable() for value in headers.values())
            # As func-python does it, before a function has the event.
            assert read_cloudevent(from_http_event(HTTPMessage(headers, body))) == event
        assert read_cloudevent(event.to_cloudevent()) == event

    @given(events())
    def test_a_key_fits_a_header_and_is_the_same_however_the_event_came(self, event: Event):
        assert event.key.isascii()
        assert event.key.isprintable()
        assert " " not in event.key
        assert read_http(*event.to_http_structured()).key == event.key

    @given(printable, printable, printable, printable)
    def test_two_events_never_share_a_key(self, source: str, identity: str, other_source: str, other_identity: str):
        one = make(REQUESTED, source, "smollm", DATA, id=identity)
        two = make(REQUESTED, other_source, "smollm", DATA, id=other_identity)
        assert (one.key == two.key) == ((source, identity) == (other_source, other_identity))

    def test_a_sharp_in_a_source_or_an_id_does_not_mix_events_up(self):
        one = make(REQUESTED, "/a#b", "smollm", DATA, id="c")
        two = make(REQUESTED, "/a", "smollm", DATA, id="b#c")
        assert one.key == "/a%23b#c"
        assert two.key == "/a#b%23c"


class TestMake:
    def test_without_id_and_time_it_gets_both(self):
        before = datetime.now(UTC)
        one, two = (make(REQUESTED, "/me", "smollm", DATA) for _ in range(2))
        assert one.id != two.id
        assert before <= one.time <= two.time <= datetime.now(UTC)

    def test_with_them_it_is_the_same_again(self):
        at = datetime(2026, 1, 31, tzinfo=UTC)
        one, two = (make(REQUESTED, "/me", "smollm", DATA, id="1", time=at, traceparent=TRACE) for _ in range(2))
        assert one == two
        assert one.key == "/me#1"
        assert one.traceparent == TRACE

    def test_what_no_receiver_would_take_cannot_be_made(self):
        for data in ({**DATA, "layers": "x"}, {"pipeline": "smollm"}, {**DATA, "layers": object()}):
            with pytest.raises(EventError):
                make(REQUESTED, "/me", "smollm", data)
        with pytest.raises(EventError, match="time zone"):
            make(REQUESTED, "/me", "smollm", DATA, time=datetime(2026, 1, 31))  # noqa: DTZ001 - what is refused

    def test_data_is_a_copy(self):
        data = dict(DATA)
        event = make(REQUESTED, "/me", "smollm", data)
        data["layers"] = "x"
        assert event.data == DATA


class TestReading:
    def test_headers_are_read_whatever_their_case(self):
        assert read_http({name.upper(): value for name, value in BINARY.items()}, BODY).id == "1"

    @pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=UTF-8", None])
    def test_json_has_several_names(self, content_type: str | None):
        headers = {name: value for name, value in BINARY.items() if name != "content-type"}
        assert read_http({**headers, **({"content-type": content_type} if content_type else {})}, BODY).data == DATA

    @pytest.mark.parametrize(
        "content_type", ["application/cloudevents+json", "Application/CloudEvents+JSON; charset=utf-8"]
    )
    def test_the_content_type_decides_on_the_mode(self, content_type: str):
        assert read_http({**BINARY, "ce-id": "of the header", "content-type": content_type}, structured()).id == "1"

    def test_what_is_null_is_not_there(self):
        event = read_http(STRUCTURED, structured(time=None, traceparent=None, team=None))
        assert event.traceparent is None
        assert event.extensions == {}

    def test_extensions_become_text(self):
        event = read_http(STRUCTURED, structured(team="blue", count=3, urgent=True))
        assert event.extensions == {"team": "blue", "count": "3", "urgent": "true"}

    def test_data_may_come_as_base64(self):
        assert read_http(STRUCTURED, structured(data=..., data_base64=base64.b64encode(BODY).decode())).data == DATA

    def test_trace_context_is_kept(self):
        event = read_http(binary(traceparent=TRACE, tracestate="a=1"), BODY)
        assert (event.traceparent, event.tracestate) == (TRACE, "a=1")

    @pytest.mark.parametrize(
        "trace",
        ["x", TRACE.upper(), TRACE + "-1", "ff" + TRACE[2:], f"00-{'0' * 32}-b7ad6b7169203331-01", TRACE + "%0A"],
    )
    def test_malformed_trace_context_is_dropped_and_the_event_taken(self, trace: str):
        event = read_http(binary(traceparent=trace, tracestate="a=1"), BODY)
        assert (event.traceparent, event.tracestate) == (None, None)
        assert event.extensions == {}

    def test_a_node_is_the_subject_of_its_events(self):
        event = make(Type.NODE_LOST, "/midstream/pipelines/smollm", "edge-1", GOOD[Type.NODE_LOST])
        assert event.subject == "edge-1"


class TestRefusals:
    @pytest.mark.parametrize("name", ["specversion", "id", "source", "type", "subject"])
    def test_no_attribute_that_is_needed_is_made_up(self, name: str):
        without = {header: value for header, value in BINARY.items() if header != f"ce-{name}"}
        for error in (refusal(without, BODY), refusal(STRUCTURED, structured(**{name: ...}))):
            assert (error.code, error.param) == (400, name)
            assert f"{name} is missing" in str(error)

    @pytest.mark.parametrize("name", ["specversion", "id", "source", "type", "subject"])
    @pytest.mark.parametrize("value", ["", 1, True, {"a": 1}, ["x"]])
    def test_attributes_are_text(self, name: str, value: object):
        error = refusal(STRUCTURED, structured(**{name: value}))
        assert (error.code, error.param) == (400, name)

    @pytest.mark.parametrize("value", ["a%0Ab", "a%0D%0Ax-evil: 1", "a%00b", "a%7Fb", "a\x1fb", "%FF%FE", "a%C2%85b"])
    @pytest.mark.parametrize("name", ["id", "source", "subject", "team"])
    def test_no_attribute_has_control_characters_or_is_not_utf_8(self, name: str, value: str):
        error = refusal(binary(**{name: value}), BODY)
        assert (error.code, error.param) == (400, name)
        assert "\n" not in str(error)

    @pytest.mark.parametrize("name", ["id", "source", "type", "subject", "team"])
    def test_attributes_have_a_bound(self, name: str):
        error = refusal(binary(**{name: "x" * 60_000}), BODY)
        assert (error.code, error.param) == (400, name)
        assert len(str(error)) < 400

    def test_source_and_id_fit_a_header_together(self):
        assert read_http(binary(id="x" * 1020), BODY).key == f"/me#{'x' * 1020}"
        assert refusal(binary(id="x" * 1021), BODY).param == "id"
        assert "percent-encoded" in str(refusal(binary(id="%C3%A9" * 200), BODY))

    @pytest.mark.parametrize("version", ["0.3", "1.1", "2"])
    def test_other_versions_of_cloudevents(self, version: str):
        for error in (
            refusal(binary(specversion=version), BODY),
            refusal(STRUCTURED, structured(specversion=version)),
        ):
            assert (error.code, error.param) == (400, "specversion")

    @pytest.mark.parametrize(
        "time",
        ["", "now", "2026-01-31", "2026-01-31T12:00:00", "2026-13-31T12:00:00Z", "9" * 300, "2026-01-31T12:00Z%00"],
    )
    def test_times_that_are_none(self, time: str):
        for error in (refusal(binary(time=time), BODY), refusal(STRUCTURED, structured(time=time))):
            assert (error.code, error.param) == (400, "time")

    def test_a_time_that_is_a_number(self):
        assert refusal(STRUCTURED, structured(time=1769860800)).param == "time"

    @pytest.mark.parametrize(
        ("content_type", "says"),
        [
            ("application/cloudevents-batch+json", "request of its own"),
            ("application/cloudevents+xml", "application/cloudevents+json"),
            ("application/json; charset=latin-1", "application/json"),
            ("text/plain", "application/json"),
            ("application/xml", "application/json"),
        ],
    )
    def test_content_that_is_not_taken(self, content_type: str, says: str):
        error = refusal({**BINARY, "content-type": content_type}, BODY)
        assert error.code == 400
        assert says in str(error)

    def test_a_request_that_is_no_event(self):
        assert "this is no CloudEvent" in str(refusal({"content-type": "application/json"}, BODY))
        assert "this is no CloudEvent" in str(refusal({}, b""))

    def test_an_attribute_that_is_there_twice(self):
        headers = Headers(raw=[*Headers(BINARY).raw, (b"ce-id", b"2")])
        with pytest.raises(EventError, match="ce-id is there twice"):
            read_http(headers, BODY)

    def test_an_unknown_type_names_those_that_are_like_it(self):
        error = refusal(binary(type="dev.midstream.reconfiguration.request"), BODY)
        assert error.as_error_body() == {
            "error": {"message": str(error), "type": "unknown_type", "param": "type", "code": 422}
        }
        assert "did you mean dev.midstream.reconfiguration.requested" in str(error)
        assert "known are: dev.midstream.workload.changed, " in str(refusal(binary(type="com.example.sold"), BODY))

    def test_another_version_of_the_data(self):
        error = refusal(binary(dataschema=REQUESTED.dataschema.replace("v1", "v2")), BODY)
        assert (error.code, error.param) == (422, "dataschema")
        assert REQUESTED.dataschema in str(error)

    def test_a_subject_that_is_not_what_the_data_is_about(self):
        error = refusal(binary(subject="other"), BODY)
        assert (error.code, error.param) == (422, "subject")

    @pytest.mark.parametrize("name", ["my-team", "TEAM", "team\n", "", "t\u00e9am", "x" * 65, "data_base64"])
    def test_extensions_with_a_name_that_no_header_may_have(self, name: str):
        assert refusal(STRUCTURED, structured(**{name: "blue"})).code == 400

    @pytest.mark.parametrize("value", [1.5, {}, ["x"], "a\nb", "x" * 1025])
    def test_extensions_of_no_simple_kind(self, value: object):
        error = refusal(STRUCTURED, structured(team=value))
        assert (error.code, error.param) == (400, "team")

    def test_more_extensions_than_anyone_needs(self):
        assert "at most 32" in str(refusal(STRUCTURED, structured(**{f"x{n}": "1" for n in range(33)})))

    @pytest.mark.parametrize(
        "body", [b"", b"{", b"\xff\xfe{}", b'{"pipeline": NaN}', b'{"pipeline": "\\ud800"}', b"{} {}"]
    )
    def test_bodies_that_are_no_json(self, body: bytes):
        for headers in (BINARY, STRUCTURED):
            assert refusal(headers, body).code == 400

    @pytest.mark.parametrize("body", [b"[]", b'"x"', b"1", b"null", b"true"])
    def test_bodies_that_are_no_object(self, body: bytes):
        assert refusal(BINARY, body).code == 422
        assert refusal(STRUCTURED, body).code == 400
        assert refusal(STRUCTURED, structured(data=json.loads(body))).code == 422

    def test_base64_that_is_none(self):
        for value in ("%%%", 1, "\u00e9"):
            assert refusal(STRUCTURED, structured(data=..., data_base64=value)).param == "data_base64"
        assert refusal(STRUCTURED, structured(data_base64="e30=")).code == 400, "data is there twice"

    @pytest.mark.parametrize("depth", [3, 100, 900, 1100, 5000, 30_000])
    @pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
    def test_nesting_is_refused_however_deep(self, depth: int, opening: bytes, closing: bytes):
        nested = opening * depth + b"1" + closing * depth
        for body in (nested, b'{"pipeline": "smollm", "layers": ' + nested + b"}"):
            assert refusal(BINARY, body).code in {400, 422}
            assert refusal(STRUCTURED, structured(data="@").replace(b'"@"', body)).code in {400, 422}

    def test_size_is_refused_before_anything_is_read(self):
        body = b'{"pipeline": "smollm", "layers": "8"' + b" " * MOST_BYTES + b"}"
        for headers in (BINARY, STRUCTURED):
            assert f"at most {MOST_BYTES}" in str(refusal(headers, body))
        assert read_http(BINARY, BODY + b" " * (MOST_BYTES - len(BODY))).data == DATA

    @pytest.mark.parametrize(
        "data",
        [
            {**DATA, "generation": float("nan")},
            {**DATA, "generation": 10**5000},
            {**DATA, "layers": "\ud800"},
            {**DATA, "layers": "8" * MOST_BYTES},
            "text that is no JSON, as the library gives it",
            b"\xff",
            None,
        ],
    )
    def test_what_the_library_lets_pass(self, data: Any):
        attributes = {"id": "1", "source": "/me", "type": str(REQUESTED), "subject": "smollm"}
        with pytest.raises(EventError) as caught:
            read_cloudevent(CloudEvent(attributes, data))
        assert caught.value.param in {"data", "data.generation", None}

    @given(st.binary(max_size=300), st.dictionaries(st.text(max_size=20), st.text(max_size=40), max_size=5))
    def test_anything_at_all_is_taken_or_refused(self, body: bytes, headers: dict[str, str]):
        for given_headers in (
            {**headers, **BINARY},
            {**BINARY, **{f"ce-{k}": v for k, v in headers.items()}},
            STRUCTURED,
        ):
            try:
                read_http(given_headers, body)
            except EventError as error:
                assert error.code in {400, 422}  # noqa: PT017 - either outcome is fine, no other error is

    @given(
        st.dictionaries(
            st.sampled_from([*DOCUMENT, "time", "dataschema", "datacontenttype", "traceparent", "data_base64", "x"]),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
                lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
                max_leaves=8,
            ),
            max_size=4,
        )
    )
    def test_any_document_is_taken_or_refused(self, changes: dict[str, Any]):
        try:
            read_http(STRUCTURED, json.dumps({**DOCUMENT, **changes}).encode())
        except EventError as error:
            assert error.code in {400, 422}  # noqa: PT017 - either outcome is fine, no other error is
