import pytest

from runtime.head.access import AccessPolicy, is_loopback

OPEN_ON_LOOPBACK = AccessPolicy(on_loopback=True, token=None)
CLOSED = AccessPolicy(on_loopback=False, token=None)
TOKEN_ON_LOOPBACK = AccessPolicy(on_loopback=True, token="s3cret")
TOKEN_EVERYWHERE = AccessPolicy(on_loopback=False, token="s3cret")
RIGHT = {"authorization": "Bearer s3cret"}


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:8000", "127.0.0.1", "127.0.0.1:8000", "127.8.9.10:1", "[::1]:8000", "[::1]", "::1"],
)
def test_on_loopback_every_program_of_this_machine_may(host: str):
    assert OPEN_ON_LOOPBACK.refusal({"host": host}) is None


def test_a_client_that_names_no_host_is_no_browser():
    assert OPEN_ON_LOOPBACK.refusal({}) is None


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",  # DNS rebinding: the page's own name, resolved to 127.0.0.1
        "localhost.evil.example",
        "127.0.0.1.evil.example:8000",
        "127.0.0.1@evil.example",
        "192.168.1.5:8000",
        "[fe80::1]:8000",
        "[2001:db8::1]",
        "0.0.0.0",  # noqa: S104 - a header, not an address to bind
        "",
        ":8000",
        "localhost:8000:9000",
    ],
)
def test_on_loopback_a_foreign_host_is_refused(host: str):
    status, message = OPEN_ON_LOOPBACK.refusal({"host": host})
    assert status == 403
    assert "does not answer web pages" in message


@pytest.mark.parametrize("origin", ["https://evil.example", "http://localhost:8000", "null", ""])
def test_on_loopback_every_web_page_is_refused_even_a_local_one(origin: str):
    status, _ = OPEN_ON_LOOPBACK.refusal({"host": "localhost:8000", "origin": origin})
    assert status == 403


@pytest.mark.parametrize("headers", [{}, {"host": "localhost"}, {"host": "10.0.0.7:8000"}, RIGHT])
def test_beyond_loopback_nobody_may_without_a_token(headers: dict[str, str]):
    status, message = CLOSED.refusal(headers)
    assert status == 403
    assert "set MIDSTREAM_CONTROL_TOKEN and start it again" in message


@pytest.mark.parametrize("policy", [TOKEN_ON_LOOPBACK, TOKEN_EVERYWHERE])
@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_holder_of_the_token_may_from_anywhere(policy: AccessPolicy, scheme: str):
    headers = {"authorization": f"{scheme} s3cret", "host": "10.0.0.7:8000", "origin": "https://console.example"}
    assert policy.refusal(headers) is None


@pytest.mark.parametrize("policy", [TOKEN_ON_LOOPBACK, TOKEN_EVERYWHERE])
@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "s3cret",
        "Basic s3cret",
        "Bearer s3cre",
        "Bearer s3crets",
        "Bearer S3CRET",
        "Bearer  s3cret",
        "Bearer s3cret ",
        "Bearer ü",
    ],
)
def test_a_token_once_set_is_needed_even_on_loopback_and_must_be_exact(policy: AccessPolicy, given: str | None):
    headers = {"host": "localhost"} if given is None else {"host": "localhost", "authorization": given}
    status, message = policy.refusal(headers)
    assert status == 401
    assert "s3cret" not in message


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.255.0.1", "::1", "[::1]"])
def test_these_hosts_are_this_machine_only(host: str):
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    [None, "", "0.0.0.0", "::", "10.0.0.1", "192.168.0.1", "fe80::1", "example.com", "localhost.example", "1"],  # noqa: S104
)
def test_these_hosts_are_not(host: str | None):
    assert not is_loopback(host)
