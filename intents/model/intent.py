"""The typed intent: what a sentence was understood to mean, before anything is compiled from it.

An intent has *subjects* (workloads) and rules about them. Every rule is a limit, none gives a permission, so more rules
never allow more. Hard rules (`required`) must hold or the intent is refused; soft ones (`preferred`) choose among what
the hard ones allow.

| rule | what it limits |
|---|---|
| placement | the nodes that subjects run on; `at_least` asks it of so many of the subjects instead of all |
| spread | subjects run apart from, or together with, other workloads, by node, zone, region, jurisdiction or provider |
| routes | switches and links that packets between subjects and peers use, way points, latency and bandwidth |
| isolation | peers that subjects exchange no packet with |
| transfer | nodes, switches and links that a migration of the subjects may touch, beyond what the other rules say |
"""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from intents.model.predicate import Predicate  # noqa: TC001 - pydantic reads it

Strength = Literal["required", "preferred"]
Direction = Literal["both", "from_subjects", "to_subjects"]
Topology = Literal["node", "zone", "region", "jurisdiction", "provider"]
State = Literal["prompts", "kv", "weights"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PlacementRule(_Model):
    """Subjects run on nodes that satisfy `nodes`."""

    nodes: Predicate
    at_least: Annotated[int, Field(ge=1)] | None = None
    strength: Strength = "required"


class SpreadRule(_Model):
    """No subject shares (`apart`), or every subject shares (`together`), a `topology` with any of the `others`.

    A subject is never compared with itself. For `together`, all subjects and others share one value.
    """

    relation: Literal["apart", "together"]
    others: Predicate
    topology: Topology = "node"
    strength: Strength = "required"


class RouteRule(_Model):
    """Packets between subjects and peers cross only such switches and links, and pass every way point.

    Attributes:
        peers: Workloads or nodes, by name or label; None: whatever the subjects exchange packets with. Peers that are
            given must be reachable within the rule, or it cannot be met; of those that are not, what cannot be
            reached so is cut off.
        direction: Which of the packets; seen from the subjects.
        switches: What every switch on the path satisfies, the first and the last included; None: any.
        links: What every link on the path satisfies; None: any.
        through: For each of these, at least one switch on the path satisfies it.
        max_latency_ms: The sum of the links' latencies is at most this.
        min_bandwidth_mbps: Every link has at least this bandwidth.
    """

    peers: Predicate | None = None
    direction: Direction = "both"
    switches: Predicate | None = None
    links: Predicate | None = None
    through: tuple[Predicate, ...] = ()
    max_latency_ms: Annotated[float, Field(ge=0)] | None = None
    min_bandwidth_mbps: Annotated[float, Field(ge=0)] | None = None
    strength: Strength = "required"

    @model_validator(mode="after")
    def _limits_something(self) -> RouteRule:
        limits = (self.switches, self.links, self.max_latency_ms, self.min_bandwidth_mbps)
        if not self.through and all(limit is None for limit in limits):
            raise ValueError(
                "a route rule needs at least one of switches, links, through, max_latency_ms, min_bandwidth_mbps"
            )
        return self


class IsolationRule(_Model):
    """No packet passes between subjects and these peers (workloads or nodes), in this direction."""

    peers: Predicate
    direction: Direction = "both"


class TransferRule(_Model):
    """What a migration of the subjects' state may touch; `forbidden`: no migration at all."""

    state: Annotated[tuple[State, ...], Field(min_length=1)] = ("prompts", "kv", "weights")
    forbidden: bool = False
    nodes: Predicate | None = None
    switches: Predicate | None = None
    links: Predicate | None = None

    @model_validator(mode="after")
    def _limits_something(self) -> TransferRule:
        if not self.forbidden and self.nodes is None and self.switches is None and self.links is None:
            raise ValueError("a transfer rule needs at least one of forbidden, nodes, switches, links")
        return self


class IntentSpec(_Model):
    """Subjects and the rules about them; at least one rule."""

    subjects: Predicate
    placement: tuple[PlacementRule, ...] = ()
    spread: tuple[SpreadRule, ...] = ()
    routes: tuple[RouteRule, ...] = ()
    isolation: tuple[IsolationRule, ...] = ()
    transfer: tuple[TransferRule, ...] = ()

    @model_validator(mode="after")
    def _has_a_rule(self) -> IntentSpec:
        if not (self.placement or self.spread or self.routes or self.isolation or self.transfer):
            raise ValueError("an intent needs at least one rule: placement, spread, routes, isolation or transfer")
        return self


class IntentMetadata(_Model):
    """Name of the intent and the sentence that it came from, if any."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
    sentence: str | None = None


class PrivacyIntent(_Model):
    """One intent, as written in a file, stored and sent (`kind: PrivacyIntent`).

    A sentence may speak of several groups of workloads ("health data in the EU, finance data in Germany"): each is an
    entry of `specs`, and all of them must hold.
    """

    apiVersion: Literal["midstream.dev/v1alpha1"] = "midstream.dev/v1alpha1"  # noqa: N815 - Kubernetes' spelling
    kind: Literal["PrivacyIntent"] = "PrivacyIntent"
    metadata: IntentMetadata
    specs: Annotated[tuple[IntentSpec, ...], Field(min_length=1)]


def intent_name(sentence: str) -> str:
    """Return a name for the intent of a sentence: its first words, and what tells it from others that begin so."""
    words = sentence.casefold().split()
    slug = "-".join(re.findall(r"[a-z0-9]+", " ".join(words))[:5])[:40].strip("-")
    digest = hashlib.blake2b(" ".join(words).encode(), digest_size=2).hexdigest()
    return f"{slug}-{digest}" if slug else f"intent-{digest}"
