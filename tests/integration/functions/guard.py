"""The guard's service over real HTTP, with files that a test changes."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import uvicorn
import yaml

from intents.model.intent import IntentMetadata, IntentSpec, PlacementRule, PrivacyIntent
from intents.model.predicate import term
from intents.service import Current, guard_application
from intents.store import IntentStore
from tests.integration.functions.head import DEADLINE_S, free_port, until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

TOKEN = "s3cret"
COUNTRIES = {"edge-1": "DE", "edge-2": "US", "edge-3": "FR"}
JURISDICTION = "midstream.dev/jurisdiction"
IN_EU = PrivacyIntent(
    metadata=IntentMetadata(name="eu-only"),
    specs=(
        IntentSpec(
            subjects=term("midstream.dev/data", "health"),
            placement=(PlacementRule(nodes=term(JURISDICTION, "DE", "FR")),),
        ),
    ),
)


class GuardService:
    """Knows some nodes by country, and a pipeline with health data, which must stay in the EU."""

    def __init__(self, folder: Path, pipeline: str = "smollm", countries: Mapping[str, str] = COUNTRIES) -> None:
        self._inventory, self.store = folder / "inventory.yaml", IntentStore(folder / "intents")
        self.pipeline, self.countries = pipeline, dict(countries)
        self.write()
        with self.store.locked():
            self.store.put(IN_EU)
        current = Current(self._inventory, folder / "intents")
        self.port = free_port()
        service = guard_application(current, tuple, "127.0.0.1", TOKEN)
        self._server = uvicorn.Server(uvicorn.Config(service, host="127.0.0.1", port=self.port, log_level="error"))
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def write(self) -> None:
        """Write the inventory."""
        nodes: list[dict[str, Any]] = [
            {"name": name, "labels": {JURISDICTION: code}} for name, code in self.countries.items()
        ]
        health = {"name": self.pipeline, "labels": {"midstream.dev/data": "health"}, "node": "edge-1"}
        new = self._inventory.with_suffix(".new")
        new.write_text(yaml.safe_dump({"kind": "Inventory", "nodes": nodes, "workloads": [health]}))
        new.rename(self._inventory)

    def move(self, node: str, country: str) -> None:
        """Let a node be in another country from now on."""
        self.countries[node] = country
        self.write()

    @contextmanager
    def running(self) -> Iterator[GuardService]:
        self._thread.start()
        until(lambda: self._server.started, "the guard listens")
        try:
            yield self
        finally:
            self.stop()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(DEADLINE_S)
