"""The ONOS client against a server that rejects what ONOS rejects."""

from __future__ import annotations

import pytest

from intents.compilation import Compiled, compile_intents
from intents.enforcement.onos import APPLICATION, OnosStore
from intents.errors import EnforcementError
from intents.model.intent import RouteRule
from intents.model.predicate import named
from intents.proof.checker import check
from tests.support.onos_server import OnosServer
from tests.unit.intents.proof.networks import DIAMOND, NOT_US, both_ways, intent, observed

ENVIRON = {"ONOS_USER": "onos", "ONOS_PASSWORD": "rocks"}
ROUTES = intent(routes=(RouteRule(peers=named("store"), switches=NOT_US),))
EU_WAY = both_ways(DIAMOND, ["s1", "s2", "s4"])
US_WAY = both_ways(DIAMOND, ["s1", "s3", "s4"])


def store(server: OnosServer, *, ticks: bool = True) -> OnosStore:
    """A client whose waiting lets the switches work, and whose clock runs a second with every look at it."""
    now = iter(range(10**6))
    pause = (lambda _: server.tick()) if ticks else (lambda _: None)
    return OnosStore("http://127.0.0.1:8181", ENVIRON, server.transport, pause, lambda: float(next(now)))


def test_what_is_read_back_is_what_was_applied():
    server = OnosServer()
    with store(server) as onos:
        onos.apply(EU_WAY)
        assert check([ROUTES], observed(DIAMOND, onos.read())).holds


def test_what_the_compiler_emits_is_accepted():
    compiled = compile_intents(DIAMOND, [ROUTES, intent("any", routes=(RouteRule(switches=NOT_US),))])
    assert isinstance(compiled, Compiled)
    server = OnosServer()
    store(server).apply(list(compiled.flows))
    assert len(server.flows) == len(compiled.flows)


def test_old_rules_go_only_when_the_new_ones_are_in_force():
    server = OnosServer()
    onos = store(server)
    onos.apply(EU_WAY)
    old = set(server.flows)
    onos.apply(US_WAY)
    new = set(server.flows)
    for states in server.states:
        removing = [key for key, state in states.items() if state == "PENDING_REMOVE"]
        assert not removing or all(states[key] == "ADDED" for key in new)
    assert old - new
    assert len(server.flows) == len(US_WAY)


def test_a_rule_that_changes_its_output_is_waited_for():
    server = OnosServer()
    onos = store(server)
    onos.apply(EU_WAY)
    onos.apply(US_WAY)
    assert not check([ROUTES], observed(DIAMOND, onos.read())).safe


def test_rules_of_other_applications_are_read_and_left_alone():
    server = OnosServer()
    server._create({"flows": EU_WAY[:1]}, "org.onosproject.fwd")
    server.tick()
    onos = store(server)
    onos.delete()
    assert [flow["appId"] for flow in onos.read()] == ["org.onosproject.fwd"]


def test_delete_takes_away_all_of_ours():
    server = OnosServer()
    onos = store(server)
    onos.apply(EU_WAY)
    assert {flow["appId"] for flow in server.flows.values()} == {APPLICATION}
    onos.delete()
    assert server.flows == {}


def test_a_rule_that_no_switch_takes_is_an_error():
    server = OnosServer(connected={"of:0000000000000001"})
    with pytest.raises(EnforcementError, match="did not come to be added within 30 s"):
        store(server).apply(EU_WAY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"priority": None}, "priority member is required in FlowRule"),
        ({"isPermanent": None}, "isPermanent member is required in FlowRule"),
        ({"isPermanent": False, "timeout": None}, "timeout member is required in FlowRule if the flow is temporary"),
        ({"deviceId": None}, "deviceId member is required in FlowRule"),
        ({"selector": {"criteria": [{"type": "IPV4_SRC"}]}}, "ip member is required in Criterion"),
        ({"selector": {"criteria": [{"type": "MOON"}]}}, "Type MOON is unknown"),
        ({"treatment": {"instructions": [{"type": "OUTPUT"}]}}, "port member is required in Instruction"),
    ],
)
def test_what_onos_rejects_is_told(change: dict, message: str):
    server = OnosServer()
    with pytest.raises(EnforcementError, match=f"ONOS refused POST /flows with 400: {message}"):
        store(server).apply([*EU_WAY, EU_WAY[0] | change])
    assert server.flows == {}


def test_wrong_credentials_are_named_and_never_shown():
    server = OnosServer(password="other")
    with pytest.raises(EnforcementError, match="refused ONOS_USER and ONOS_PASSWORD") as caught:
        store(server).read()
    assert "rocks" not in str(caught.value)


def test_credentials_must_be_there_and_do_not_travel_in_the_clear():
    with pytest.raises(EnforcementError, match="set ONOS_PASSWORD"):
        OnosStore("http://localhost:8181", {"ONOS_USER": "onos"})
    with pytest.raises(EnforcementError, match="in the clear"):
        OnosStore("http://192.0.2.1:8181", ENVIRON)
    OnosStore("https://192.0.2.1:8181", ENVIRON)


def test_an_onos_that_is_away_is_an_error():
    with pytest.raises(EnforcementError, match="did not answer GET /flows"):
        OnosStore("http://127.0.0.1:1", ENVIRON).read()
