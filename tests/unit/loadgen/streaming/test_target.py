import json

import pytest

from loadgen.errors import OptionsError
from loadgen.streaming.target import Address, Limits, RequestWriter, Target, read_address
from loadgen.workloads.plan import PlannedRequest, Prompt
from tests.unit.loadgen.streaming.support import planned


def written(
    target: Target, request: PlannedRequest | None = None, *, token_ids: bool = False
) -> tuple[list[str], dict]:
    data = RequestWriter(target, "m", token_ids=token_ids, run_id="run").write(request or planned(3), 0)
    head, _, body = data.partition(b"\r\n\r\n")
    return head.decode().split("\r\n"), json.loads(body)


class TestAddress:
    @pytest.mark.parametrize(
        ("url", "address"),
        [
            ("http://127.0.0.1:8000", Address("127.0.0.1", 8000, False, "")),
            ("http://localhost", Address("localhost", 80, False, "")),
            ("https://host/api/v1/", Address("host", 443, True, "/api")),
            ("http://[::1]:9", Address("::1", 9, False, "")),
        ],
    )
    def test_a_base_url_is_taken_apart(self, url, address):
        assert read_address(url) == address

    def test_the_authority_leaves_out_the_usual_port(self):
        assert read_address("https://host").authority == "host"
        assert read_address("http://[::1]:9").authority == "[::1]:9"

    @pytest.mark.parametrize("url", ["", "host:8000", "ftp://host", "http://", "http://h:99999", "http://h/?a=1"])
    def test_what_is_no_base_url_is_refused_with_the_url(self, url):
        with pytest.raises(OptionsError, match="target URL"):
            read_address(url)

    def test_a_password_in_the_url_is_refused_and_not_repeated(self):
        with pytest.raises(OptionsError) as raised:
            read_address("http://me:hunter2@host")
        assert "hunter2" not in str(raised.value)


class TestRequest:
    def test_a_completion_asks_for_a_stream_with_usage(self):
        head, body = written(Target("http://h:1/base", temperature=0.5))
        assert head[0] == "POST /base/v1/completions HTTP/1.1"
        assert {"host: h:1", "accept-encoding: identity", "x-request-id: run-3"} <= set(head)
        assert body == {
            "model": "m",
            "prompt": "prompt 3",
            "max_tokens": 5,
            "temperature": 0.5,
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    def test_extensions_are_sent_only_if_wanted(self):
        _, body = written(Target("http://h", ignore_eos=True, continuous_usage=True), token_ids=True)
        assert (body["ignore_eos"], body["return_token_ids"]) == (True, True)
        assert body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}

    def test_further_fields_win(self):
        _, body = written(Target("http://h", extra_body={"temperature": 1, "top_k": 3}))
        assert (body["temperature"], body["top_k"]) == (1, 3)

    def test_chat_sends_a_message(self):
        head, body = written(Target("http://h", endpoint="chat"))
        assert head[0] == "POST /v1/chat/completions HTTP/1.1"
        assert body["messages"] == [{"role": "user", "content": "prompt 3"}]

    def test_ids_are_sent_as_ids_and_not_to_chat(self):
        request = PlannedRequest(0, 0, None, 0, 0, Prompt(2, None, (5, 6)), 1)
        assert written(Target("http://h"), request)[1]["prompt"] == [5, 6]
        with pytest.raises(OptionsError, match="use completions"):
            written(Target("http://h", endpoint="chat"), request)

    def test_the_length_of_the_body_is_that_of_its_bytes(self):
        request = PlannedRequest(0, 0, None, 0, 0, Prompt(2, "añ\u2028", None), 1)
        data = RequestWriter(Target("http://h"), "m", token_ids=False, run_id="r").write(request, 1)
        head, _, body = data.partition(b"\r\n\r\n")
        assert f"content-length: {len(body)}".encode() in head
        assert b"x-request-id: r-0-1" in head

    def test_the_key_comes_from_the_environment_alone(self, monkeypatch):
        target = Target("http://h", api_key_env="LOAD_TEST_KEY")
        monkeypatch.setenv("LOAD_TEST_KEY", "secret")
        assert "authorization: Bearer secret" in written(target)[0]
        assert "secret" not in repr(target)
        for value in ("", "two\r\nlines"):
            monkeypatch.setenv("LOAD_TEST_KEY", value)
            with pytest.raises(OptionsError, match="LOAD_TEST_KEY") as raised:
                written(target)
            assert "two" not in str(raised.value)


@pytest.mark.parametrize(
    "wrong",
    [{"max_in_flight": 0}, {"silence_s": 0}, {"total_s": -1}, {"retries": -1}, {"grace_s": -1}, {"connect_s": 0}],
)
def test_limits_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(OptionsError, match=next(iter(wrong))):
        Limits(**wrong)
