"""Who may ask the services of intents."""

import pytest

from intents.access import is_loopback, presents


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.255.0.1", "::1"])
def test_these_hosts_are_this_machine_only(host: str):
    assert is_loopback(host)


@pytest.mark.parametrize("host", [None, "", "0.0.0.0", "::", "10.0.0.1", "example.com", "localhost.example", "1"])  # noqa: S104
def test_these_hosts_are_not(host: str | None):
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("header", "known"),
    [
        ("Bearer s3cret", True),
        ("bearer  s3cret ", True),
        ("Bearer s3cre", False),
        ("Bearer s3crét", False),
        ("Basic s3cret", False),
        ("s3cret", False),
        ("", False),
    ],
)
def test_a_token_is_presented_whole(header: str, known: bool):
    assert presents(header, "s3cret") is known
