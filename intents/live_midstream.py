"""An inventory with what a running Midstream says of its pipelines.

The head of a pipeline (`GET /midstream/v1/status`) knows stages and the nodes they run on; labels of nodes, switches
and links come from an inventory file, whose names are the key. Each stage becomes a workload `<pipeline>-stage-<i>`
with the label `midstream.dev/pipeline: <pipeline>`. What the file says of such a workload, or of one with the
pipeline's name, holds for it too: there the user writes `midstream.dev/data: health`. The stages replace a workload
with the pipeline's name. Stages that the file has and the pipeline has not stand there without node and replicas.

A sleeping pipeline has no stages; its layout still says where they come back, so they stand there without replicas.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from intents.errors import InventoryError
from intents.model.inventory import Inventory, Workload

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType

PIPELINE = "midstream.dev/pipeline"
TOKEN_VARIABLE = "MIDSTREAM_CONTROL_TOKEN"  # noqa: S105 - the variable's name, not its value
LOCAL_NODE = "local"
_TIMEOUT_S = 10.0
_PIPELINE_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")


class HeadAway(InventoryError):
    """The head cannot be reached, or not for the moment."""


class _Stage(BaseModel):
    model_config = ConfigDict(extra="ignore")
    index: int = Field(ge=0)
    node: str = Field(min_length=1)


class _Status(BaseModel):
    model_config = ConfigDict(extra="ignore")
    epoch: int
    layers: str
    stages: tuple[_Stage, ...]


@dataclass(frozen=True, slots=True)
class RunningPipeline:
    """What serves now.

    Attributes:
        name: Of the pipeline.
        nodes: Of its stages, in order.
        epoch: Counts its layouts.
        awake: Whether the stages run.
    """

    name: str
    nodes: tuple[str, ...]
    epoch: int
    awake: bool = True


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
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "status"
            raise InventoryError(f"{self._endpoint}: its status makes no sense: {where}: {first['msg']}") from error
        nodes = [each.node for each in sorted(status.stages, key=lambda each: each.index)]
        awake = bool(nodes)
        if not awake:
            nodes = [stage.partition("@")[2].strip() or LOCAL_NODE for stage in status.layers.split(",")]
        return RunningPipeline(self._pipeline, tuple(map(self._named, nodes)), status.epoch, awake)

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
    version = f"{inventory.version}+{','.join(f'{each.name}.{each.epoch}' for each in running)}"
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
