"""The inventory: one snapshot of nodes, workloads, switches and links, with a version.

Written as YAML (`kind: Inventory`), the four lists at the top level or under `spec`. Beside what an intent speaks of
(names and labels) elements may say how they are addressed in a real network: a node's or workload's `ip`, a node's
`port` on its switch, a switch's OpenFlow `device`, a link's `a_port` and `b_port`. What is not given is derived in
`intents.model.addressing`, always the same for the same inventory.

Names are unique across nodes, workloads and switches of one kind; links are undirected and there may be several
between two switches, told apart by their ports.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from intents.errors import InventoryError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike


def _label_text(value: Any) -> Any:
    """YAML reads `true`, `1` and `NO` (Norway) as it likes; labels are text."""
    if not isinstance(value, dict):
        return value
    return {key: _scalar_text(each) for key, each in value.items()}


def _scalar_text(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else value


Name = Annotated[str, BeforeValidator(_scalar_text), Field(min_length=1, max_length=253)]
Labels = Annotated[dict[str, str], BeforeValidator(_label_text)]


class _Element(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Node(_Element):
    """A machine that workloads run on, and the switch that it hangs on (None: it has no network of its own)."""

    name: Name
    labels: Labels = Field(default_factory=dict)
    switch: Name | None = None
    port: Annotated[int, Field(ge=1, le=65279)] | None = None
    ip: str | None = None


class Workload(_Element):
    """Something that runs, and where (None: nowhere yet)."""

    name: Name
    labels: Labels = Field(default_factory=dict)
    node: Name | None = None
    replicas: Annotated[int, Field(ge=0)] = 1
    ip: str | None = None
    namespace: str = "default"


class Switch(_Element):
    """An OpenFlow switch; `device` is its id, such as `of:0000000000000001`."""

    name: Name
    labels: Labels = Field(default_factory=dict)
    device: Annotated[str, Field(pattern=r"^of:[0-9a-f]{16}$")] | None = None


class Link(_Element):
    """A link between two switches; usable both ways while it is `up`."""

    a: Name
    b: Name
    labels: Labels = Field(default_factory=dict)
    latency_ms: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    bandwidth_mbps: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1000.0
    up: bool = True
    a_port: Annotated[int, Field(ge=1, le=65279)] | None = None
    b_port: Annotated[int, Field(ge=1, le=65279)] | None = None

    @property
    def name(self) -> str:
        """The name that predicates may use: both ends in order, such as `s1-s2`."""
        return "-".join(sorted((self.a, self.b)))


class Inventory(_Element):
    """The snapshot; `version` is whatever its source counts by (a number, or Kubernetes' resourceVersion)."""

    apiVersion: Literal["midstream.dev/v1alpha1"] = "midstream.dev/v1alpha1"  # noqa: N815 - Kubernetes' spelling
    kind: Literal["Inventory"] = "Inventory"
    metadata: dict[str, Any] = Field(default_factory=dict)
    version: Annotated[str, BeforeValidator(_scalar_text)] = "1"
    nodes: tuple[Node, ...] = ()
    workloads: tuple[Workload, ...] = ()
    switches: tuple[Switch, ...] = ()
    links: tuple[Link, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _lists_may_stand_under_spec(cls, document: Any) -> Any:
        if isinstance(document, dict) and isinstance(document.get("spec"), dict):
            outer = {key: value for key, value in document.items() if key != "spec"}
            twice = sorted(outer.keys() & document["spec"].keys())
            if twice:
                raise ValueError(f"{', '.join(twice)} stand both at the top and under spec: keep one of them")
            return outer | document["spec"]
        return document

    @model_validator(mode="after")
    def _refers_to_what_exists(self) -> Inventory:
        for kind, elements in (("node", self.nodes), ("workload", self.workloads), ("switch", self.switches)):
            seen: set[str] = set()
            for element in elements:
                if element.name in seen:
                    raise ValueError(f"two {kind} entries are named {element.name!r}: names must be unique")
                seen.add(element.name)
        for node in self.nodes:
            if node.switch is not None and node.switch not in self.switch:
                raise ValueError(f"node {node.name!r} hangs on switch {node.switch!r}, which is not in switches")
        for workload in self.workloads:
            if workload.node is not None and workload.node not in self.node:
                raise ValueError(f"workload {workload.name!r} runs on node {workload.node!r}, which is not in nodes")
        for link in self.links:
            for end in (link.a, link.b):
                if end not in self.switch:
                    raise ValueError(f"link {link.a}-{link.b} ends at {end!r}, which is not in switches")
            if link.a == link.b:
                raise ValueError(f"link {link.a}-{link.b} joins a switch with itself")
        return self

    @cached_property
    def node(self) -> Mapping[str, Node]:
        """Nodes by name."""
        return {node.name: node for node in self.nodes}

    @cached_property
    def workload(self) -> Mapping[str, Workload]:
        """Workloads by name."""
        return {workload.name: workload for workload in self.workloads}

    @cached_property
    def switch(self) -> Mapping[str, Switch]:
        """Switches by name."""
        return {switch.name: switch for switch in self.switches}


def read_inventory(path: str | PathLike[str]) -> Inventory:
    """Read an inventory file.

    Raises:
        InventoryError: it cannot be read, is no YAML or no inventory; the message names file, field and value.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise InventoryError(f"{path}: cannot be read: {error}") from error
    return parse_inventory(text, str(path))


def parse_inventory(text: str, source: str = "inventory") -> Inventory:
    """Read an inventory from YAML; `source` stands in front of what is wrong with it.

    Raises:
        InventoryError: as `read_inventory`.
    """
    try:
        document = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise InventoryError(f"{source}: not YAML: {error}") from error
    except RecursionError as error:
        raise InventoryError(f"{source}: nested too deeply to be an inventory") from error
    if not isinstance(document, dict):
        raise InventoryError(f"{source}: holds {type(document).__name__}, not a mapping with kind: Inventory")
    try:
        return Inventory.model_validate(document)
    except ValidationError as error:
        raise InventoryError(f"{source}: {_explain(error.errors())}") from error


class _Loader(yaml.SafeLoader):
    """YAML without the words of YAML 1.1 that are country codes: NO stays Norway, only true and false are boolean."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _explain(errors: Sequence[Any]) -> str:
    parts = []
    for error in errors[:5]:
        where = ".".join(str(part) for part in error["loc"]) or "inventory"
        message = error["msg"].removeprefix("Value error, ")
        given = error.get("input")
        shown = f" (given: {given!r:.60})" if not isinstance(given, dict | list) else ""
        parts.append(f"{where}: {message}{shown}")
    more = f"; and {len(errors) - 5} more" if len(errors) > 5 else ""
    return "; ".join(parts) + more
