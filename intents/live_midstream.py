"""An inventory with what a running Midstream says of its pipelines.

The head of a pipeline (`GET /midstream/v1/status`) knows stages and the nodes they run on; labels of nodes, switches
and links come from an inventory file, whose names are the key. Each stage becomes a workload `<pipeline>-stage-<i>`
with the label `midstream.dev/pipeline: <pipeline>`. What the file says of such a workload, or of one with the
pipeline's name, holds for it too: there the user writes `midstream.dev/data: health`. The stages replace a workload
with the pipeline's name. Stages that the file has and the pipeline has not stand there without node and replicas.

A sleeping pipeline has no stages; its layout still says where they come back, so they stand there without replicas.

The head is also asked for another layout (`POST /midstream/v1/reconfigurations`), with a key: asked twice with the same
key it changes once. All KV is computed again (`recompute`): what was on a node that must not have it is not read back.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from intents.errors import EnforcementError, IntentsError, InventoryError
from intents.model.inventory import Inventory, Workload
from intents.model.labels import PIPELINE
from intents.relocation import Placed

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType

    from intents.proof.observed import Observed

TOKEN_VARIABLE = "MIDSTREAM_CONTROL_TOKEN"  # noqa: S105 - the variable's name, not its value
LOCAL_NODE = "local"
METHOD = "recompute"
UNCHANGED = "unchanged"
_TIMEOUT_S = 10.0
_WAKE_S = 70.0  # the head waits so long for a pipeline that sleeps, or for its guard
_WAIT_S = 30.0
_PASSING = frozenset({"asleep", "busy", "guard_asked", "guard_silent"})  # refusals that are for a while
_LAYOUT = re.compile(r"(?:^|,) *([0-9]{1,9}) *(?:@ *([^ ,@]+) *)?(?=,|$)")
_PIPELINE_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")


class HeadAway(InventoryError):
    """The head cannot be reached, or not for the moment."""


class LayoutRefused(EnforcementError):
    """The head does not change to a layout; `kind` as its control API has it."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind

    @property
    def passing(self) -> bool:
        """Whether it does not for the moment only."""
        return self.kind in _PASSING


class _Stage(BaseModel):
    model_config = ConfigDict(extra="ignore")
    index: int = Field(ge=0)
    node: str = Field(min_length=1)


class _Status(BaseModel):
    model_config = ConfigDict(extra="ignore")
    epoch: int
    layers: str
    stages: tuple[_Stage, ...]
    boot: str = ""
    spare_stages: dict[str, int] = Field(default_factory=dict)
    stopped: str | None = None


class Change(BaseModel):
    """The head's report of a change: `state` is `running`, or how it ended; `repeated`: it was asked for before."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    id: str = Field(min_length=1, max_length=100)
    state: Literal["running", "committed", "aborted"]
    reason: str | None = None
    total_ms: float = 0.0
    pause_ms: float | None = None
    requests_carried: int = 0
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class RunningPipeline:
    """What serves now.

    Attributes:
        name: Of the pipeline.
        nodes: Of its stages, in order.
        epoch: Counts its layouts.
        awake: Whether the stages run.
        layers: Of its stages, in order.
        there: Nodes that the head has, with stages or without.
        boot: The start of the head; epochs begin anew with it.
        beside: The machine of the head itself, if it can have stages.
        stopped: Why it computes nothing, if so: its guard forbids it where it is.
    """

    name: str
    nodes: tuple[str, ...]
    epoch: int
    awake: bool = True
    layers: tuple[int, ...] = ()
    there: frozenset[str] = frozenset()
    boot: str = ""
    beside: str | None = None
    stopped: str | None = None

    @property
    def stages(self) -> tuple[Placed, ...]:
        """Its layout."""
        return tuple(Placed(*each) for each in zip(self.layers, self.nodes, strict=True))

    def written(self, stages: Iterable[Placed]) -> str:
        """Return a layout as the head reads it, such as `8@edge-1,22`."""
        return ",".join(str(each.layers) + ("" if each.node == self.beside else f"@{each.node}") for each in stages)


class MidstreamSource:
    """Reads the pipeline of one head; use as a context manager.

    Args:
        endpoint: Its address, such as `http://127.0.0.1:8000`.
        pipeline: Its name; the head's status does not tell it.
        here: Name in the inventory of the machine that the head itself runs on, for stages there.
        token: The head's token; None: as in the environment.
        transport: In place of httpx's own.

    Raises:
        InventoryError: the endpoint is no address, or the name none of a pipeline.
    """

    def __init__(
        self,
        endpoint: str,
        pipeline: str,
        here: str | None = None,
        token: str | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        if not _PIPELINE_NAME.fullmatch(pipeline):
            raise InventoryError(f"{pipeline!r} is no name of a pipeline: lower-case letters, digits, '-' and '.'")
        self._endpoint, self._pipeline, self._here = endpoint.rstrip("/").removesuffix("/v1"), pipeline, here
        token = os.environ.get(TOKEN_VARIABLE) if token is None else token
        try:
            self._http = httpx.Client(
                base_url=self._endpoint,
                headers={"Authorization": f"Bearer {token}"} if token else {},
                timeout=_TIMEOUT_S,
                transport=transport,
            )
        except httpx.InvalidURL as error:
            raise InventoryError(f"{endpoint!r} is no address such as http://127.0.0.1:8000: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def read(self) -> RunningPipeline:
        """Ask the head.

        Raises:
            HeadAway: it cannot be reached.
            InventoryError: it refuses, is no Midstream, or a stage runs where no name is known for.
        """
        try:
            response = self._http.get("/midstream/v1/status")
            response.raise_for_status()
            status = _Status.model_validate_json(response.content)
        except httpx.HTTPStatusError as error:
            raise self._refused(error.response.status_code) from error
        except httpx.HTTPError as error:
            raise HeadAway(f"{self._endpoint}: cannot be reached: {str(error) or type(error).__name__}") from error
        except ValidationError as error:
            raise InventoryError(f"{self._endpoint}: its status makes no sense: {_first(error)}") from error
        layout = _LAYOUT.findall(status.layers)
        nodes = [each.node for each in sorted(status.stages, key=lambda each: each.index)]
        if not layout or len(nodes) not in {0, len(layout)}:
            raise InventoryError(f"{self._endpoint}: its status makes no sense: layers: {status.layers!r:.60}")
        awake = bool(nodes)
        nodes = nodes or [node or LOCAL_NODE for _, node in layout]
        return RunningPipeline(
            name=self._pipeline,
            nodes=tuple(map(self._named, nodes)),
            epoch=status.epoch,
            awake=awake,
            layers=tuple(int(layers) for layers, _ in layout),
            there=frozenset(self._named(node) for node in status.spare_stages if node != LOCAL_NODE or self._here),
            boot=status.boot,
            beside=self._here if LOCAL_NODE in {*nodes, *status.spare_stages} else None,
            stopped=status.stopped,
        )

    def ask_for(self, layers: str, key: str) -> Change:
        """Ask for a layout, written as above; asked again with the same key, the same change or refusal is told of.

        Raises:
            HeadAway: it cannot be reached.
            LayoutRefused: it does not change to that; `unchanged` is a refusal too.
            InventoryError: its answer makes no sense.
        """
        body = {"layers": layers, "method": METHOD}
        return self._change("POST", "", json=body, headers={"Idempotency-Key": key}, timeout=_WAKE_S)

    def await_end(self, change: str) -> Change:
        """Return how a change ended, or where it is after some time; raises as `ask_for`."""
        return self._change("GET", f"/{change}", params={"wait": _WAIT_S}, timeout=_WAIT_S + _TIMEOUT_S)

    def _change(self, method: str, path: str, **arguments: Any) -> Change:
        try:
            response = self._http.request(method, f"/midstream/v1/reconfigurations{path}", **arguments)
            if not response.is_success:
                raise self._no_change(response)
            return Change.model_validate_json(response.content)
        except httpx.HTTPError as error:
            raise HeadAway(f"{self._endpoint}: cannot be reached: {str(error) or type(error).__name__}") from error
        except ValidationError as error:
            raise InventoryError(f"{self._endpoint}: its report makes no sense: {_first(error)}") from error

    def _no_change(self, response: httpx.Response) -> IntentsError:
        try:
            error = response.json()["error"]
            kind, message = str(error["type"]), str(error["message"])
        except (ValueError, KeyError, TypeError):
            return self._refused(response.status_code)
        if kind == "access_denied":
            return self._refused(response.status_code)
        return LayoutRefused(message, kind)

    def _named(self, node: str) -> str:
        if node != LOCAL_NODE:
            return node
        if self._here is None:
            raise InventoryError(
                f"{self._pipeline} has stages on the head's own machine: say which node of the inventory that is"
            )
        return self._here

    def _refused(self, code: int) -> InventoryError:
        if code in {401, 403}:
            return InventoryError(f"{self._endpoint}: HTTP {code}: set {TOKEN_VARIABLE} to the head's token")
        if code == httpx.codes.NOT_FOUND:
            return InventoryError(
                f"{self._endpoint} answers, but has no control API: it was not started by `midstream serve`"
            )
        return HeadAway(f"{self._endpoint}: HTTP {code}")


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else str(first["msg"])


def merged(inventory: Inventory, pipelines: Iterable[RunningPipeline]) -> Inventory:
    """Return the inventory with the stages of these pipelines where they run.

    Raises:
        InventoryError: a stage runs on a node that the inventory does not have, or two pipelines have one name.
    """
    running = list(pipelines)
    names = [each.name for each in running]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InventoryError(f"two running pipelines are named {twice[0]!r}: names must be unique")
    workloads = {each.name: each for each in inventory.workloads}
    for pipeline in running:
        for index, node in enumerate(pipeline.nodes):
            if node not in inventory.node:
                known = ", ".join(sorted(inventory.node)) or "none"
                raise InventoryError(
                    f"stage {index} of {pipeline.name} runs on node {node!r}, which is not in the inventory; "
                    f"nodes there: {known}"
                )
        workloads |= {each.name: each for each in _stages(inventory, pipeline)}
        workloads.pop(pipeline.name, None)  # it is its stages now
    layouts = (f"{each.name}.{each.epoch}{'' if each.awake else '.asleep'}" for each in running)
    version = f"{inventory.version}+{','.join(layouts)}"
    return Inventory(  # not a copy, which would keep what was looked up in the old one
        metadata=inventory.metadata,
        version=version,
        nodes=inventory.nodes,
        workloads=tuple(workloads.values()),
        switches=inventory.switches,
        links=inventory.links,
    )


def read_running(inventory: Inventory, sources: Sequence[MidstreamSource]) -> Inventory:
    """Return the inventory with what the heads of these pipelines say now; raises InventoryError."""
    return merged(inventory, [source.read() for source in sources])


def with_stages(observed: Observed, inventory: Inventory, running: RunningPipeline | None) -> Observed:
    """Return what was observed, with the stages of a pipeline as `inventory` has them.

    Who reads what runs from a cluster knows its pods and nothing of stages in them.
    """
    if running is None:
        return observed
    stages = {f"{running.name}-stage-{index}": node for index, node in enumerate(running.nodes)}
    seen = observed.inventory
    lost = sorted(set(running.nodes) - seen.node.keys())
    if lost:
        raise InventoryError(f"{running.name} has a stage on node {lost[0]}, which is not there any more")
    kept = [each for each in seen.workloads if each.name not in stages]
    now = Inventory(
        metadata=seen.metadata,
        version=seen.version if seen.version == inventory.version else f"{seen.version}+{inventory.version}",
        nodes=seen.nodes,
        workloads=(*kept, *(inventory.workload[name] for name in stages)),
        switches=seen.switches,
        links=seen.links,
    )
    placement = {**observed.placement, **{name: (node,) for name, node in stages.items()}}
    return replace(observed, placement=placement, inventory=now, version=now.version)


def _stages(inventory: Inventory, pipeline: RunningPipeline) -> Iterable[Workload]:
    """Make the workloads of a pipeline: those that run, and those that only the file knows."""
    whole = inventory.workload.get(pipeline.name)
    common: dict[str, Any] = {} if whole is None else {"labels": whole.labels, "namespace": whole.namespace}
    for index, node in enumerate(pipeline.nodes):
        name = f"{pipeline.name}-stage-{index}"
        known = inventory.workload.get(name)
        own = {} if known is None else {"ip": known.ip, "namespace": known.namespace}
        labels = {**common.get("labels", {}), **({} if known is None else known.labels), PIPELINE: pipeline.name}
        yield Workload(
            **{**common, **own, "name": name, "labels": labels, "node": node, "replicas": int(pipeline.awake)}
        )
    number = re.compile(rf"{re.escape(pipeline.name)}-stage-([0-9]+)")
    for known in inventory.workloads:
        found = number.fullmatch(known.name)
        if found and int(found[1]) >= len(pipeline.nodes):
            yield known.model_copy(update={"node": None, "replicas": 0})
