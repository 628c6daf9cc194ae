"""The link between two machines: which commands make it, and what is said where it cannot be made."""

import socket
import sys

import pytest

from loadgen.errors import LinkError
from loadgen.link import KINDS, RATES, carry_out, cuts, joined, missing, setup_commands


def test_both_ends_are_shaped_to_the_rate_and_brought_up_with_their_own_loopback():
    lines = [" ".join(command) for command in setup_commands("left", "right", RATES["100mbit"])]
    assert lines == [
        "ip netns add left",
        "ip netns add right",
        "ip link add ms-near netns left type veth peer name ms-far netns right",
        "ip -n left addr add 10.213.77.1/30 dev ms-near",
        "ip -n right addr add 10.213.77.2/30 dev ms-far",
        "tc -n left qdisc add dev ms-near root tbf rate 100mbit burst 16kb latency 20ms",
        "tc -n right qdisc add dev ms-far root tbf rate 100mbit burst 16kb latency 20ms",
        "ip -n left link set lo up",
        "ip -n left link set ms-near up",
        "ip -n right link set lo up",
        "ip -n right link set ms-far up",
    ]


def test_commands_that_are_not_in_the_path_are_called_where_they_are():
    commands = setup_commands("a", "b", RATES["1gbit"], "/usr/sbin/ip", "/usr/sbin/tc")
    assert {command[0] for command in commands} == {"/usr/sbin/ip", "/usr/sbin/tc"}


@pytest.mark.parametrize("kind", sorted(RATES))
def test_a_burst_is_short_against_a_pause(kind):
    rate = RATES[kind]
    assert rate.burst.endswith("kb")
    burst_ms = int(rate.burst.removesuffix("kb")) * 1024 * 8 / rate.bits_per_second * 1e3
    assert burst_ms < 2


@pytest.mark.parametrize(
    ("root", "ip", "tc", "says"),
    [
        (False, "/sbin/ip", "/sbin/tc", "a link of 1gbit needs root; --link loopback works without"),
        (
            True,
            "/sbin/ip",
            None,
            (
                "a link of 1gbit needs the command tc (ip and tc come with the package iproute2); "
                "--link loopback works without"
            ),
        ),
        (
            False,
            None,
            None,
            (
                "a link of 1gbit needs root and the command ip and the command tc (ip and tc come with the package "
                "iproute2); --link loopback works without"
            ),
        ),
    ],
)
def test_all_that_is_missing_is_named_with_what_works_without(root, ip, tc, says):
    assert missing("1gbit", root=root, ip=ip, tc=tc) == says


def test_nothing_is_said_where_nothing_is_missing():
    assert missing("1gbit", root=True, ip="/sbin/ip", tc="/sbin/tc") is None


def test_without_root_the_error_comes_before_anything_is_made(monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(LinkError, match="a link of 1gbit needs root"), joined("1gbit"):
        pytest.fail("there is no such link")


def test_loopback_needs_nothing_and_changes_nothing():
    with joined("loopback") as link:
        assert (link.near, link.far, link.far_command, link.device) == ("127.0.0.1", "127.0.0.1", (), None)
        assert link.facts["kind"] == "loopback"
        with socket.create_server((link.far, 0)):
            pass


def test_every_rate_is_a_kind():
    assert KINDS == ("1gbit", "100mbit", "loopback")


def test_a_link_is_cut_at_its_far_end_or_in_silence_at_both_and_healed_by_the_reverse():
    lines = {
        way: ([" ".join(command) for command in cut.cut], [" ".join(command) for command in cut.heal])
        for way, cut in cuts("left", "right").items()
    }
    nobody = "lladdr 02:00:00:00:00:01"
    assert lines == {
        "pulled": (["ip -n right link set ms-far down"], ["ip -n right link set ms-far up"]),
        "silent": (
            [
                f"ip -n left neigh replace 10.213.77.2 {nobody} dev ms-near nud permanent",
                f"ip -n right neigh replace 10.213.77.1 {nobody} dev ms-far nud permanent",
            ],
            ["ip -n left neigh del 10.213.77.2 dev ms-near", "ip -n right neigh del 10.213.77.1 dev ms-far"],
        ),
    }


def test_a_cut_that_fails_says_what_and_why():
    with pytest.raises(LinkError, match=r"raise SystemExit\('no such device'\)` says 'no such device'"):
        carry_out(((sys.executable, "-c", "raise SystemExit('no such device')"),))
