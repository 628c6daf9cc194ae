"""What ONOS' REST API accepts and answers, for tests: written after the resources and codecs of ONOS 2.

It rejects what ONOS rejects, with ONOS' status codes and messages: no or wrong credentials (401), a body that is no
JSON object (400), a flow rule without `priority`, `isPermanent`, `deviceId`, or without `timeout` if it is temporary
(400), criteria and instructions that are not known or lack a member (400), a deletion without `deviceId` or `flowId`
(404). As there, ids come from device, priority and selector, rules are `PENDING_ADD` until a switch has them, and a
deletion is `PENDING_REMOVE` at first. `tick` is what a switch does: rules of connected devices get into force or leave.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

import httpx

_MEMBERS = {
    "ETH_TYPE": "ethType",
    "IN_PORT": "port",
    "IP_PROTO": "protocol",
    "IPV4_SRC": "ip",
    "IPV4_DST": "ip",
    "TCP_DST": "tcpPort",
    "TCP_SRC": "tcpPort",
    "UDP_DST": "udpPort",
    "UDP_SRC": "udpPort",
    "ETH_SRC": "mac",
    "ETH_DST": "mac",
    "VLAN_VID": "vlanId",
}


class Rejected(Exception):
    """ONOS answers with this status and message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class OnosServer:
    """ONOS as far as flow rules and topology go; `transport` is what clients speak to."""

    user: str = "onos"
    password: str = "rocks"
    devices: list[dict[str, Any]] = field(default_factory=list)
    links: list[dict[str, Any]] = field(default_factory=list)
    hosts: list[dict[str, Any]] = field(default_factory=list)
    flows: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    connected: set[str] | None = None  # None: all
    asked: list[str] = field(default_factory=list)
    states: list[dict[tuple[str, int], str]] = field(default_factory=list)  # after each request

    @property
    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self._answer)

    def tick(self) -> None:
        for key, flow in list(self.flows.items()):
            if self.connected is not None and key[0] not in self.connected:
                continue
            if flow["state"] == "PENDING_REMOVE":
                del self.flows[key]
            else:
                flow["state"] = "ADDED"

    def _answer(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        self.asked.append(f"{request.method} {path}")
        token = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        if request.headers.get("Authorization") != f"Basic {token}":
            return httpx.Response(401)
        try:
            answer = self._route(request.method, path.removeprefix("/onos/v1"), request)
        except Rejected as rejected:
            return httpx.Response(rejected.status, json={"code": rejected.status, "message": str(rejected)})
        self.states.append({key: flow["state"] for key, flow in self.flows.items()})
        return answer

    def _route(self, method: str, path: str, request: httpx.Request) -> httpx.Response:
        match method, path:
            case "GET", "/flows":
                return httpx.Response(200, json={"flows": list(self.flows.values())})
            case "POST", "/flows":
                if request.headers.get("Content-Type") != "application/json":
                    raise Rejected(415, "Unsupported Media Type")
                application = parse_qs(request.url.query.decode()).get("appId", ["org.onosproject.rest"])[0]
                return httpx.Response(200, json={"flows": self._create(_body(request), application)})
            case "DELETE", "/flows":
                self._remove(_body(request))
                return httpx.Response(204)
            case "GET", ("/devices" | "/links" | "/hosts") as what:
                return httpx.Response(200, json={what[1:]: getattr(self, what[1:])})
        raise Rejected(404, "HTTP 404 Not Found")

    def _create(self, body: dict[str, Any], application: str) -> list[dict[str, Any]]:
        rules = [_decode(flow, application) for flow in body["flows"]]  # all are read before any is taken
        for rule in rules:
            self.flows[rule["deviceId"], int(rule["id"])] = rule
        return [{"deviceId": rule["deviceId"], "flowId": int(rule["id"])} for rule in rules]

    def _remove(self, body: dict[str, Any]) -> None:
        for flow in body["flows"]:
            for member, message in (("deviceId", "Device is not found"), ("flowId", "Flow is not found")):
                if flow.get(member) is None:
                    raise Rejected(404, message)
            found = self.flows.get((flow["deviceId"], flow["flowId"]))
            if found is not None:
                found["state"] = "PENDING_REMOVE"


def _body(request: httpx.Request) -> dict[str, Any]:
    try:
        body = json.loads(request.content)
    except ValueError as error:
        raise Rejected(400, str(error)) from error
    if not isinstance(body, dict) or not isinstance(body.get("flows"), list):
        raise Rejected(400, "the JSON has no array flows")
    return body


def _required(json_object: dict[str, Any], member: str, of: str, more: str = "") -> Any:
    if json_object.get(member) is None:
        raise Rejected(400, f"{member} member is required in {of}{more}")
    return json_object[member]


def _decode(flow: dict[str, Any], application: str) -> dict[str, Any]:
    priority = _required(flow, "priority", "FlowRule")
    if not _required(flow, "isPermanent", "FlowRule"):
        _required(flow, "timeout", "FlowRule", " if the flow is temporary")
    device = _required(flow, "deviceId", "FlowRule")
    criteria = [_criterion(each) for each in (flow.get("selector") or {}).get("criteria", [])]
    instructions = [_instruction(each) for each in (flow.get("treatment") or {}).get("instructions", [])]
    identity = json.dumps([device, priority, criteria], sort_keys=True)
    number = int.from_bytes(hashlib.sha256(identity.encode()).digest()[:7], "big")
    return {
        "id": str(number),
        "appId": application,
        "deviceId": device,
        "priority": priority,
        "timeout": flow.get("timeout", 0),
        "isPermanent": flow["isPermanent"],
        "tableId": flow.get("tableId", 0),
        "state": "PENDING_ADD",
        "selector": {"criteria": criteria},
        "treatment": {"instructions": instructions or [{"type": "NOACTION"}], "deferred": []},
    }


def _criterion(criterion: dict[str, Any]) -> dict[str, Any]:
    kind = criterion.get("type")
    if kind not in _MEMBERS:
        raise Rejected(400, f"Type {kind} is unknown")
    _required(criterion, _MEMBERS[kind], "Criterion")
    return criterion


def _instruction(instruction: dict[str, Any]) -> dict[str, Any]:
    kind = instruction.get("type")
    if kind == "OUTPUT":
        port = _required(instruction, "port", "Instruction")
        return {"type": "OUTPUT", "port": str(port)}
    if kind == "NOACTION":
        return {"type": "NOACTION"}
    raise Rejected(400, f"Instruction type {kind} is not supported")
