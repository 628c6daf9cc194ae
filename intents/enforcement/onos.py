"""Flow rules and topology through ONOS' REST API (`/onos/v1`, ONOS 2).

Protocol: `POST /flows?appId=` takes all rules and answers with their ids, before any switch has them. ONOS derives an
id from device, priority and selector, so a rule sent again replaces the one with the same id. What counts is the state
that ONOS read from the switch: `apply` waits until every rule is `ADDED` as it was asked for, only then deletes those
of the application that are gone (`DELETE /flows` with a body), and waits until they have left. `read` returns the rules
of all applications with their states.

User and password come from `ONOS_USER` and `ONOS_PASSWORD`; over plain HTTP they go to loopback alone.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Self

import httpx

from intents.access import is_loopback
from intents.errors import EnforcementError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

APPLICATION = "dev.midstream.intents"
USER, PASSWORD = "ONOS_USER", "ONOS_PASSWORD"

_REQUEST_S = 30.0
_SETTLE_S = 30.0
_POLL_S = 0.2


class OnosStore:
    """A `FlowStore` that is an ONOS controller.

    Args:
        url: Where ONOS is, such as `http://127.0.0.1:8181`.
        environ: Has user and password.
        transport: Takes the requests instead of the network.
        pause: Waits between two looks at what is installed.
        clock: Seconds that only go forward.

    Raises:
        EnforcementError: user or password is missing, or would travel in the clear.
    """

    def __init__(
        self,
        url: str,
        environ: Mapping[str, str],
        transport: httpx.BaseTransport | None = None,
        pause: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        given = httpx.URL(url)
        if given.scheme != "https" and not is_loopback(given.host):
            raise EnforcementError(f"{url} would carry the password in the clear: use https, or ONOS on loopback")
        missing = [name for name in (USER, PASSWORD) if not environ.get(name)]
        if missing:
            raise EnforcementError(f"set {' and '.join(missing)}: ONOS answers nobody without them")
        self._url = url
        self._http = httpx.Client(
            base_url=given.copy_with(path="/onos/v1/"),
            auth=(environ[USER], environ[PASSWORD]),
            timeout=_REQUEST_S,
            transport=transport,
            trust_env=False,
        )
        self._pause = pause
        self._clock = clock

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._http.close()

    def apply(self, flows: Sequence[dict[str, Any]]) -> None:
        """Make these the application's rules."""
        kept: set[tuple[str, str]] = set()
        if flows:
            answer = self._ask("POST", "/flows", params={"appId": APPLICATION}, json={"flows": list(flows)})
            ids = [(str(each["deviceId"]), str(each["flowId"])) for each in answer["flows"]]
            if len(ids) != len(flows):
                raise EnforcementError(f"ONOS took {len(ids)} of {len(flows)} flow rules")
            wanted = {key: _outputs(flow) for key, flow in zip(ids, flows, strict=True)}
            kept = set(ids)
            self._wait(lambda: _not_yet(wanted, self._own()), "be added")
        gone = self._own().keys() - kept
        if gone:
            body = {"flows": [{"deviceId": device, "flowId": int(flow)} for device, flow in sorted(gone)]}
            self._ask("DELETE", "/flows", json=body)
            self._wait(lambda: sorted(gone & self._own().keys()), "be removed")

    def read(self) -> list[dict[str, Any]]:
        """Return every rule that ONOS read from a switch, with its state."""
        return [dict(flow) for flow in self._ask("GET", "/flows")["flows"]]

    def delete(self) -> None:
        """Take away all of the application's rules."""
        self.apply([])

    def devices(self) -> list[dict[str, Any]]:
        """Return ONOS' devices."""
        return list(self._ask("GET", "/devices")["devices"])

    def links(self) -> list[dict[str, Any]]:
        """Return ONOS' links, one for each direction."""
        return list(self._ask("GET", "/links")["links"])

    def hosts(self) -> list[dict[str, Any]]:
        """Return ONOS' hosts."""
        return list(self._ask("GET", "/hosts")["hosts"])

    def _own(self) -> dict[tuple[str, str], dict[str, Any]]:
        return {
            (str(flow["deviceId"]), str(flow["id"])): flow for flow in self.read() if flow.get("appId") == APPLICATION
        }

    def _wait(self, missing: Callable[[], Sequence[tuple[str, str]]], what: str) -> None:
        deadline = self._clock() + _SETTLE_S
        while left := missing():
            if self._clock() > deadline:
                device, flow = left[0]
                raise EnforcementError(
                    f"{len(left)} flow rules did not come to {what} within {_SETTLE_S:g} s, "
                    f"the first is {flow} of {device}: is the switch connected?"
                )
            self._pause(_POLL_S)

    def _ask(self, method: str, path: str, **what: Any) -> dict[str, Any]:
        try:
            answer = self._http.request(method, path, **what)
        except httpx.HTTPError as error:
            raise EnforcementError(f"ONOS at {self._url} did not answer {method} {path}: {error!r}") from error
        if answer.status_code in {401, 403}:
            raise EnforcementError(f"ONOS at {self._url} refused {USER} and {PASSWORD}")
        if answer.is_error:
            raise EnforcementError(f"ONOS refused {method} {path} with {answer.status_code}: {_message(answer)}")
        if answer.status_code == httpx.codes.NO_CONTENT or not answer.content:
            return {}
        try:
            body: dict[str, Any] = answer.json()
        except ValueError as error:
            raise EnforcementError(f"ONOS answered {method} {path} with something that is not JSON") from error
        return body


def _not_yet(
    wanted: Mapping[tuple[str, str], frozenset[str]], own: Mapping[tuple[str, str], Mapping[str, Any]]
) -> list[tuple[str, str]]:
    return [
        key
        for key, outputs in wanted.items()
        if key not in own or own[key].get("state") != "ADDED" or _outputs(own[key]) != outputs
    ]


def _outputs(flow: Mapping[str, Any]) -> frozenset[str]:
    given = (flow.get("treatment") or {}).get("instructions") or ()
    return frozenset(str(each["port"]) for each in given if each.get("type") == "OUTPUT")


def _message(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["message"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:200]
