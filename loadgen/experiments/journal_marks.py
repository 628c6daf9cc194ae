"""Marks from elsewhere: from a target's journal, and from the events that go through a CloudEvents broker.

Both name moments in unix time. Of what says how long it took (`total_ms`) the mark spans that long and ends where it
was told; the rest are instants. What happened before the run is left out.
"""

import asyncio
import contextlib
import json
import os
from collections.abc import Mapping
from typing import Any, Self

import httpx

from loadgen.errors import ControlError, MeasurementError
from loadgen.experiments.axis import Axis
from loadgen.experiments.schema import BrokerMarks
from loadgen.experiments.tally import Tally
from loadgen.experiments.target_control import TargetControl
from loadgen.results.columns import MarkRow

_EVERY_S = 5.0
_LONG_POLL_S = 10.0
_ANSWER_S = 10.0
_MOST_DETAIL = 4000

_KINDS = {"stage lost": "kill_stage", "recovered": "recovery", "node lost": "node_lost"}


class JournalReader:
    """Reads a target's journal now and then, and marks what is new in it.

    Args:
        control: The target's control API.
        events: Which events to mark.
        axis, tally: The run's time, and where marks go.
        changes: Changes that are marked already, by whoever made them.
    """

    def __init__(
        self, control: TargetControl, events: tuple[str, ...], axis: Axis, tally: Tally, changes: set[str]
    ) -> None:
        self._control, self._events, self._axis, self._tally = control, events, axis, tally
        self._changes = changes
        self._seen: set[tuple[float, str, str]] = set()

    async def read(self) -> None:
        """Mark what the journal has now and had not before. A server that does not answer is asked again later."""
        with contextlib.suppress(ControlError):
            for entry in await self._control.story():
                key = (float(entry["at"]), str(entry["subject"]), str(entry["event"]))
                if key not in self._seen:
                    self._seen.add(key)
                    row = journal_mark(entry, self._events, self._axis, self._changes)
                    if row is not None:
                        self._tally.mark(row)

    async def read_on(self) -> None:
        """Read every few seconds, until cancelled."""
        while True:
            await asyncio.sleep(_EVERY_S)
            await self.read()


def journal_mark(entry: Mapping[str, Any], events: tuple[str, ...], axis: Axis, changes: set[str]) -> MarkRow | None:
    """Return the mark of a journal's entry; None if it is not wanted, marked already, or was before the run."""
    event, subject = str(entry["event"]), str(entry["subject"])
    is_change = event == "ended" and "steps_ms" in entry  # requests end too
    if event not in events or (event == "ended" and not is_change) or subject in changes:
        return None
    end = axis.from_unix(float(entry["at"]))
    start = end - _length_ns(entry)
    if start < 0:
        return None
    name = subject if is_change else f"{subject} {event}" if subject != "pipeline" else event
    kind = "reconfigure" if is_change else _KINDS.get(event, event.replace(" ", "_"))
    return MarkRow(name, kind, start, end, "journal", _detail(entry))


class BrokerReader:
    """Watches a broker's events and marks them as they come.

    Args:
        source: Which broker, and which of its events.
        axis, tally: The run's time, and where marks go.
        transport: In place of the network, for tests.
    """

    def __init__(
        self, source: BrokerMarks, axis: Axis, tally: Tally, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._source, self._axis, self._tally = source, axis, tally
        token = os.environ.get("MIDSTREAM_CONTROL_TOKEN")
        self._http = httpx.AsyncClient(
            base_url=source.url,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=_ANSWER_S + _LONG_POLL_S,
            trust_env=False,
            transport=transport,
        )
        self._after = 0

    async def __aenter__(self) -> Self:
        """Find out where the broker's numbers are, so that only what comes from now on is marked.

        Raises:
            MeasurementError: it does not answer, or not as a broker.
        """
        try:
            self._after = int((await self._page({"after": "latest"}))["next"])
        except BaseException:
            await self._http.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def read(self, wait_s: float = 0.0) -> None:
        """Mark what has come since; wait so long for something if there is nothing.

        Raises:
            MeasurementError: the broker does not answer any more, or has lost events that were not read yet.
        """
        wanted = {"subject": self._source.subject, "type": self._source.type}
        query = {name: value for name, value in wanted.items() if value is not None}
        page = await self._page({"after": str(self._after), "wait": f"{wait_s:g}", "limit": "1000", **query})
        if page["missed"]:
            raise MeasurementError(
                f"the broker {self._source.url} was started anew or lost events: marks would be missing"
            )
        for entry in page["events"]:
            row = broker_mark(entry, self._axis)
            if row is not None:
                self._tally.mark(row)
        self._after = int(page["next"])

    async def read_on(self) -> None:
        """Read until cancelled; raises as `read`."""
        while True:
            await self.read(_LONG_POLL_S)

    async def _page(self, query: Mapping[str, str]) -> Any:
        url = self._source.url
        try:
            response = await self._http.get("/events", params=dict(query))
            page = response.raise_for_status().json()
        except (httpx.HTTPError, ValueError) as error:
            reason = str(error) or type(error).__name__
            raise MeasurementError(f"marks cannot be taken from the broker {url}: {reason}; is it running?") from error
        if not isinstance(page, dict) or not {"events", "next", "missed"} <= page.keys():
            raise MeasurementError(f"marks cannot be taken from {url}: it does not answer as a broker")
        return page


def broker_mark(entry: Mapping[str, Any], axis: Axis) -> MarkRow | None:
    """Return the mark of a line of the broker's ring; None if it was before the run."""
    event = entry["event"]
    data = event.get("data")
    data = data if isinstance(data, dict) else {}
    end = axis.from_unix(float(entry["at"]))
    start = end - _length_ns(data)
    if start < 0:
        return None
    kind = str(event["type"])
    words = kind.split(".")
    topic = words[-2] if len(words) > 1 else kind
    detail = {"id": event.get("id"), "source": event.get("source"), "subject": event.get("subject"), "data": data}
    if entry.get("undelivered"):
        detail["undelivered"] = entry["undelivered"]
    return MarkRow(kind, "reconfigure" if topic == "reconfiguration" else topic, start, end, "broker", _detail(detail))


def _length_ns(detail: Mapping[str, Any]) -> int:
    total = detail.get("total_ms")
    return round(total * 1e6) if isinstance(total, int | float) and not isinstance(total, bool) and total > 0 else 0


def _detail(detail: Mapping[str, Any]) -> str:
    text = json.dumps(dict(detail), default=str)
    return text if len(text) <= _MOST_DETAIL else json.dumps({"cut_off": text[:_MOST_DETAIL]})
