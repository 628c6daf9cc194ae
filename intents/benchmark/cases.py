"""The benchmark's files: sentences over an inventory and what has to come of them.

An expectation is written down as facts about the inventory (these nodes, not these switches), never as a typed intent:
it says what must be allowed and forbidden in the end, whatever the way there. It is read strictly: an unknown field, a
name that the inventory does not have or an expectation that says nothing is an error of the benchmark, found when it
is loaded. README.md tells the format.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from intents.errors import IntentsError
from intents.model.intent import (
    PrivacyIntent,  # noqa: TC001 - pydantic reads it
    State,  # noqa: TC001 - pydantic reads it
    Topology,  # noqa: TC001 - pydantic reads it
)
from intents.model.inventory import Inventory, read_inventory
from intents.model.refusal import RefusalKind  # noqa: TC001 - pydantic reads it

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from os import PathLike

FOLDER = Path(__file__).parent
EVERY_OTHER = "*"
"""As a route's `to`: every other workload that runs somewhere."""

Names = Annotated[tuple[str, ...], Field(min_length=1)]
Pair = tuple[str, str]

_Read = TypeVar("_Read")


class BenchmarkError(IntentsError):
    """A file of the benchmark cannot be read or contradicts its inventory."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RouteExpectation(_Model):
    """Packets between each of `source` and each of `target` get through, and only so.

    Attributes:
        source: Workloads (`from` in the file).
        target: Workloads or nodes, or `*` (`to` in the file). With `*` a pair that no path can serve is cut off.
        both: The way back is meant as well.
        avoid: Switches that no path touches.
        avoid_links: Links, by name, that no path uses.
        through: Of each of these groups of switches, a path passes at least one.
        max_latency_ms: The sum of the links' latencies is at most this.
        min_bandwidth_mbps: Every link has at least this.
        path: The only path that meets all this, where there is just one.
        prefer_path: The path to take of those that are allowed.
    """

    source: Names = Field(alias="from")
    target: Names = Field(alias="to")
    both: bool = True
    avoid: tuple[str, ...] = ()
    avoid_links: tuple[str, ...] = ()
    through: tuple[Names, ...] = ()
    max_latency_ms: float | None = None
    min_bandwidth_mbps: float | None = None
    path: tuple[str, ...] | None = None
    prefer_path: tuple[str, ...] | None = None


class CountExpectation(_Model):
    """At least `count` of the workloads run on one of the nodes."""

    workloads: Names
    nodes: Names
    count: Annotated[int, Field(ge=1)]


class SpreadExpectation(_Model):
    """None (`apart`) or all (`together`) of the workloads share the topology's value with each of the others."""

    workloads: Names
    others: Names
    topology: Topology = "node"


class TransferExpectation(_Model):
    """Exactly these nodes and switches may take part when the state of a workload is moved; None: not judged."""

    state: Annotated[tuple[State, ...], Field(min_length=1)] = ("prompts", "kv", "weights")
    nodes: tuple[str, ...] | None = None
    switches: tuple[str, ...] | None = None
    forbidden: bool = False


class Expectation(_Model):
    """What has to come of a sentence.

    Attributes:
        outcome: Whether it is to be enforced.
        kinds: If refused: any of these kinds of refusal is right.
        also_refused: If ok: kinds of refusal that are right as well, where a careful translator may ask back.
        placement: Exactly the nodes that each workload may run on. Of a workload that is not named here, every node
            is to stay allowed.
        prefers: Nodes of which one is chosen.
        at_least: Counts over workloads; which of them are restricted is left open.
        apart: Workloads that share no node (zone, ...) with others.
        together: Workloads that share the node (zone, ...) with others.
        routes: Paths that have to exist, and their limits.
        blocked: Ordered pairs that exchange no packet.
        may_block: Ordered pairs that may be cut off or not.
        transfer: What a migration may touch, by workload.
        unjudged: Workloads whose allowed nodes are left open.
        unjudged_routes: The sentence may also be taken to limit routes; paths and cut-offs beyond those named are
            left open.
    """

    outcome: Literal["ok", "refused"]
    kinds: tuple[RefusalKind, ...] = ()
    also_refused: tuple[RefusalKind, ...] = ()
    placement: dict[str, Names] = Field(default_factory=dict)
    prefers: dict[str, Names] = Field(default_factory=dict)
    at_least: tuple[CountExpectation, ...] = ()
    apart: tuple[SpreadExpectation, ...] = ()
    together: tuple[SpreadExpectation, ...] = ()
    routes: tuple[RouteExpectation, ...] = ()
    blocked: tuple[Pair, ...] = ()
    may_block: tuple[Pair, ...] = ()
    transfer: dict[str, TransferExpectation] = Field(default_factory=dict)
    unjudged: tuple[str, ...] = ()
    unjudged_routes: bool = False

    @model_validator(mode="after")
    def _says_something(self) -> Expectation:
        where = (self.placement, self.at_least, self.apart, self.together)
        rules = (*where, self.routes, self.blocked, self.transfer)
        if self.outcome == "refused" and (not self.kinds or any(rules) or self.also_refused):
            raise ValueError("a refusal is expected with its kinds and nothing else")
        if self.outcome == "ok" and (self.kinds or not any(rules)):
            raise ValueError("outcome ok needs an expectation, and no kinds (see also_refused)")
        return self


class Case(_Model):
    """One sentence over one inventory, with the intents that are active already."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
    category: str
    complexity: Literal["simple", "complex"] | None = None
    inventory: str
    language: str = "en"
    why: str = ""
    sentence: Annotated[str, Field(min_length=1)]
    active: tuple[PrivacyIntent, ...] = ()
    expect: Expectation


class Paraphrase(_Model):
    """Other words for the case named `of`."""

    of: str
    sentence: Annotated[str, Field(min_length=1)]


_CASES = TypeAdapter(tuple[Case, ...])
_PARAPHRASES = TypeAdapter(tuple[Paraphrase, ...])


def read_cases(path: str | PathLike[str], inventories: Mapping[str, Inventory]) -> tuple[Case, ...]:
    """Read a file of cases and hold every name in it against the inventories.

    Raises:
        BenchmarkError: it cannot be read, or it speaks of what its inventory does not have.
    """
    cases = _read(path, _CASES)
    seen: set[str] = set()
    for case in cases:
        where = f"{path}: {case.id}"
        if case.id in seen:
            raise BenchmarkError(f"{where}: two cases have this id: give one of them another")
        seen.add(case.id)
        if case.inventory not in inventories:
            raise BenchmarkError(f"{where}: inventory {case.inventory!r} is none of {', '.join(sorted(inventories))}")
        unknown = sorted(set(_unknown_names(case.expect, inventories[case.inventory])))
        if unknown:
            raise BenchmarkError(f"{where}: not in inventory {case.inventory}: {', '.join(unknown)}")
    return cases


def read_paraphrases(path: str | PathLike[str], cases: tuple[Case, ...]) -> tuple[Case, ...]:
    """Read paraphrases as cases of their own: the ids are those of the cases with .p1, .p2 ... behind.

    Raises:
        BenchmarkError: the file cannot be read, or names a case that does not exist.
    """
    by_id = {case.id: case for case in cases}
    number: dict[str, int] = {}
    found = []
    for each in _read(path, _PARAPHRASES):
        if each.of not in by_id:
            raise BenchmarkError(f"{path}: {each.of!r} is no case: name one of the intents' ids")
        number[each.of] = number.get(each.of, 0) + 1
        update = {"id": f"{each.of}.p{number[each.of]}", "sentence": each.sentence}
        found.append(by_id[each.of].model_copy(update=update))
    return tuple(found)


@cache
def bundled_inventories() -> Mapping[str, Inventory]:
    """Return the inventories that come with the benchmark, by name."""
    return {path.stem: read_inventory(path) for path in sorted((FOLDER / "inventories").glob("*.yaml"))}


@cache
def bundled_intents() -> tuple[Case, ...]:
    """Return the 90 intents: computing, networking, hybrid."""
    return tuple(
        case
        for category in ("computing", "networking", "hybrid")
        for case in read_cases(FOLDER / "intents" / f"{category}.yaml", bundled_inventories())
    )


@cache
def bundled_traps() -> tuple[Case, ...]:
    """Return the traps."""
    return read_cases(FOLDER / "traps.yaml", bundled_inventories())


@cache
def bundled_paraphrases() -> tuple[Case, ...]:
    """Return the paraphrases that whoever works on a translator may look at."""
    return read_paraphrases(FOLDER / "paraphrases" / "seen.yaml", bundled_intents())


@cache
def bundled_exams() -> tuple[Case, ...]:
    """Return the sentences that were kept secret until a translator had been measured by them once."""
    return (
        *read_paraphrases(FOLDER / "exams" / "first-paraphrases.yaml", bundled_intents()),
        *(
            case
            for name in ("first", "second", "third", "fourth", "fifth")
            for case in read_cases(FOLDER / "exams" / f"{name}.yaml", bundled_inventories())
        ),
    )


PARTS: Mapping[str, Callable[[], tuple[Case, ...]]] = {
    "intents": bundled_intents,
    "traps": bundled_traps,
    "paraphrases": bundled_paraphrases,
    "exams": bundled_exams,
}


def bundled(names: Sequence[str]) -> dict[str, tuple[Case, ...]]:
    """Return parts of the benchmark that comes with Midstream, by name.

    Raises:
        BenchmarkError: there is no part of that name.
    """
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        raise BenchmarkError(f"no part is called {unknown[0]!r}; parts: {', '.join(PARTS)}")
    return {name: PARTS[name]() for name in names}


def _read(path: str | PathLike[str], adapter: TypeAdapter[_Read]) -> _Read:
    try:
        with open(path, encoding="utf-8") as file:
            document = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BenchmarkError(f"{path}: cannot be read: {error}") from error
    try:
        return adapter.validate_python(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BenchmarkError(f"{path}: entry {where}: {first['msg'].removeprefix('Value error, ')}") from error


def _unknown_names(expect: Expectation, inventory: Inventory) -> Iterator[str]:
    """Yield every name in an expectation that its inventory does not have in this role."""
    workloads, nodes, switches = set(inventory.workload), set(inventory.node), set(inventory.switch)
    links = {link.name for link in inventory.links}

    def beyond(known: set[str], *groups: tuple[str, ...]) -> Iterator[str]:
        return (name for group in groups for name in group if name not in known)

    for wanted in (expect.placement, expect.prefers):
        yield from beyond(workloads, tuple(wanted))
        yield from beyond(nodes, *wanted.values())
    for count in expect.at_least:
        yield from beyond(workloads, count.workloads)
        yield from beyond(nodes, count.nodes)
    for spread in (*expect.apart, *expect.together):
        yield from beyond(workloads, spread.workloads, spread.others)
    for route in expect.routes:
        yield from beyond(workloads, route.source)
        yield from beyond(workloads | nodes | {EVERY_OTHER}, route.target)
        yield from beyond(switches, route.avoid, *route.through, route.path or (), route.prefer_path or ())
        yield from beyond(links, route.avoid_links)
    for pair in (*expect.blocked, *expect.may_block):
        yield from beyond(workloads | nodes, pair)
    for workload, transfer in expect.transfer.items():
        yield from beyond(workloads, (workload,))
        yield from beyond(nodes, transfer.nodes or ())
        yield from beyond(switches, transfer.switches or ())
    yield from beyond(workloads, expect.unjudged)
