"""What a broker counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge


class Metrics:
    """The counters of one broker."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.accepted = Counter(
            "midstream_broker_events_accepted", "Events accepted, replies among them.", registry=self.registry
        )
        self.refused = Counter("midstream_broker_events_refused", "Events refused.", ["reason"], registry=self.registry)
        self.delivered = self._by_trigger("events_delivered", "Events that a subscriber took.")
        self.retried = self._by_trigger("deliveries_retried", "Further attempts to deliver an event.")
        self.dead = self._by_trigger("events_dead", "Events that were given up.")
        self.lost = self._by_trigger("events_lost", "Events given up that no dead letter sink took.")
        self.replied = self._by_trigger("replies", "Events that subscribers answered with.")
        self.malformed_replies = self._by_trigger("replies_malformed", "Answers that are no valid events.")
        self.ignored_replies = self._by_trigger("replies_ignored", "Answers that are something else than events.")
        self.depth = Gauge(
            "midstream_broker_queue_depth",
            "Events that a trigger has not delivered yet.",
            ["trigger"],
            registry=self.registry,
        )
        self._of_triggers = [
            *(self.delivered, self.retried, self.dead, self.lost, self.replied),
            *(self.malformed_replies, self.ignored_replies, self.depth),
        ]

    def add_trigger(self, name: str) -> None:
        """Show a trigger's counters from the beginning."""
        for metric in self._of_triggers:
            metric.labels(name)

    def remove_trigger(self, name: str) -> None:
        """Show a trigger's counters no longer."""
        for metric in self._of_triggers:
            metric.remove(name)

    def _by_trigger(self, name: str, about: str) -> Counter:
        return Counter(f"midstream_broker_{name}", about, ["trigger"], registry=self.registry)
