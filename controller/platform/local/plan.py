"""What runs for an LLMPipeline on this machine, and in which order.

Pure but for two things: ports are chosen when they are first asked for, and the identities of node runtimes are files.
Everything listens on loopback. Which child is which::

    node-<name>     node runtime of a node that the stages name     midstream node run
    broker          where events come in and go out                 python -m controller.platform.broker
    head            the users' endpoint                             midstream serve
    reconfigure     the function that changes the pipeline          functions/reconfigure
    stage-<index>   the function of a stage                         functions/stage
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

import yaml

from controller.platform.broker.client import DEFAULT_BROKER
from controller.platform.llm_pipeline import InvalidPipeline, Problem, UnsupportedHere
from controller.platform.local.child import Answers, Command, Says
from controller.platform.local.processes import PlatformError
from controller.platform.serve_flags import serve_flags
from runtime.transport.identity import Enrolment, Identity, Peer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from controller.platform.llm_pipeline import LLMPipeline
    from controller.platform.local.state import PlatformFolder

LOOPBACK = "127.0.0.1"
HEAD_NAME = "Head"  # among nodes, whose names in an LLMPipeline have no capital letters
_COMMAND = (sys.executable, "-m", "controller.cli")
_ENGINE_START_S = 600.0  # a model may have to be downloaded
_BROKER_PORT = urlsplit(DEFAULT_BROKER).port or 0  # taken if it is free: then commands find the broker there
_FUNCTION_STOP_S = 30.0  # its drain time, and some more
_TYPES = {
    "reconfigure": ("dev.midstream.reconfiguration.requested",),
    "stage": ("dev.midstream.stage.prepare", "dev.midstream.stage.release"),
}
_FUNCTIONS = Path(__file__).resolve().parents[3] / "functions"


class Plan(Protocol):
    """What the supervisor has to know of its children."""

    @property
    def ports(self) -> Mapping[str, int]:
        """The ports chosen until now, by child."""

    def prepare(self, stages: int) -> None:
        """Make the files that children need, for so many stages."""

    def phases(self, stages: int) -> Sequence[Sequence[str]]:
        """Name the children, in the order of their start; those of one phase start at once."""

    def functions(self, stages: int) -> Sequence[str]:
        """Name the children that there are because of stages."""

    def trigger(self, child: str) -> Mapping[str, Any]:
        """Say which events a function gets, as a Knative Trigger."""

    def command(self, child: str, pipeline: LLMPipeline) -> Command:
        """Say how to run a child, when `pipeline` is the object that serves."""


class LocalPlan:
    """The children of a real platform."""

    def __init__(
        self, folder: PlatformFolder, pipeline: LLMPipeline, total_layers: int, port: int, temporary: str
    ) -> None:
        self._folder, self._pipeline, self._total_layers, self._temporary = folder, pipeline, total_layers, temporary
        self._ports = {"head": port}
        if port != _BROKER_PORT and is_free(_BROKER_PORT):
            self._ports["broker"] = _BROKER_PORT

    @property
    def ports(self) -> Mapping[str, int]:
        """The ports chosen until now, by child."""
        return self._ports

    def phases(self, stages: int) -> Sequence[Sequence[str]]:
        """Name the children, in the order of their start."""
        nodes = [f"node-{node}" for node in self._pipeline.nodes]
        return [nodes, ["broker"], ["head"], ["reconfigure", *self.functions(stages)]]

    def functions(self, stages: int) -> Sequence[str]:
        """Name the functions of stages."""
        return [f"stage-{index}" for index in range(stages)]

    def prepare(self, stages: int) -> None:
        """Make nodes and head trust each other, and write what the broker delivers where."""
        triggers = [self.trigger(child) for child in ("reconfigure", *self.functions(stages))]
        partial = self._folder.triggers.with_suffix(".partial")
        partial.write_text(yaml.safe_dump_all(triggers, sort_keys=False), encoding="utf-8")
        partial.rename(self._folder.triggers)
        if self._pipeline.nodes and not self._folder.node(HEAD_NAME).exists():
            self._enrol()

    def trigger(self, child: str) -> Mapping[str, Any]:
        """Say which events a function gets, as a Knative Trigger."""
        types = _TYPES["reconfigure" if child == "reconfigure" else "stage"]
        return {
            "apiVersion": "eventing.knative.dev/v1",
            "kind": "Trigger",
            "metadata": {"name": child},
            "spec": {
                "broker": "default",
                "filters": [{"any": [{"exact": {"type": kind}} for kind in types]}],
                "subscriber": {"uri": f"http://{self.address(child)}"},
            },
        }

    def address(self, child: str) -> str:
        """Return host:port of a child."""
        if child not in self._ports:
            self._ports[child] = free_port(self._ports.values())
        return f"{LOOPBACK}:{self._ports[child]}"

    def command(self, child: str, pipeline: LLMPipeline) -> Command:
        """Say how to run a child, when `pipeline` is the object that serves."""
        if child == "broker":
            broker = ("-m", "controller.platform.broker", "--port", self._port(child))
            return self._command(
                (sys.executable, *broker, "--triggers", str(self._folder.triggers)),
                self._answers(child, "/healthz"),
                {},
            )
        if child == "head":
            environment = {"K_SINK": f"http://{self.address('broker')}", "MIDSTREAM_PIPELINE": pipeline.name}
            return self._command(
                (*_COMMAND, "serve", *self._head_options(pipeline)),
                self._answers(child, "/health"),
                environment,
                start_s=_ENGINE_START_S,
                stop_s=30.0,
            )
        if child.startswith("node-"):
            node = child.removeprefix("node-")
            options = ("--name", node, "--state", str(self._folder.node(node)), "--listen", self.address(child))
            return self._command(
                (*_COMMAND, "node", "run", *options), Says(r"^\S+  ready\s"), {}, start_s=_ENGINE_START_S, stop_s=30.0
            )
        return self._function(child, pipeline)

    def _function(self, child: str, pipeline: LLMPipeline) -> Command:
        folder = _FUNCTIONS / ("reconfigure" if child == "reconfigure" else "stage")
        if not folder.is_dir():
            raise PlatformError(f"there is no function in {folder}; run Midstream from a checkout of its repository")
        environment = {
            "LISTEN_ADDRESS": self.address(child),
            "MIDSTREAM_ENDPOINT": f"http://{self.address('head')}",
            "MIDSTREAM_PIPELINE": pipeline.name,
        }
        if child != "reconfigure":
            environment["MIDSTREAM_STAGE"] = child.removeprefix("stage-")
        return self._command(
            (sys.executable, "-m", "controller.platform.serve_function", str(folder)),
            self._answers(child, "/health/readiness"),
            environment,
            stop_s=_FUNCTION_STOP_S,
            stop_with_all_s=0.0,  # it would have the pipeline changed, which ends too
        )

    def _head_options(self, pipeline: LLMPipeline) -> list[str]:
        spec = pipeline.spec
        options = ["--layers", pipeline.layout_text(self._total_layers), "--host", LOOPBACK]
        options += ["--port", self._port("head")]
        options += serve_flags(spec)
        if self._pipeline.nodes:  # those that run: an applied object may use fewer
            options += [part for node in self._pipeline.nodes for part in ("--node", node)]
            options += ["--name", HEAD_NAME, "--state", str(self._folder.node(HEAD_NAME))]
            options += ["--listen", self.address("head-for-nodes")]
        return [*options, *spec.engine_args]

    def _command(
        self,
        argv: tuple[str, ...],
        ready: Answers | Says,
        environment: Mapping[str, str],
        *,
        start_s: float = 60.0,
        stop_s: float = 20.0,
        stop_with_all_s: float | None = None,
    ) -> Command:
        # What children put into the folder for temporary files goes with the platform, however it ends.
        common = {"TMPDIR": self._temporary, "PYTHONUNBUFFERED": "1"}
        return Command(argv, ready, {**common, **environment}, start_s, stop_s, stop_with_all_s)

    def _enrol(self) -> None:
        places = {HEAD_NAME: self.address("head-for-nodes")}
        places.update({node: self.address(f"node-{node}") for node in self._pipeline.nodes})
        certificates = {name: Identity.load_or_create(self._folder.node(name), name).certificate_pem for name in places}
        for name in places:
            enrolment = Enrolment(self._folder.node(name))
            for peer, address in places.items():
                if peer != name:
                    enrolment.add(
                        Peer(
                            name=peer,
                            certificate_pem=certificates[peer],
                            address=address,
                            controls=peer == HEAD_NAME,
                        )
                    )

    def _port(self, child: str) -> str:
        return self.address(child).rpartition(":")[2]

    def _answers(self, child: str, path: str) -> Answers:
        return Answers(f"http://{self.address(child)}{path}")


def refuse_what_only_a_cluster_has(pipeline: LLMPipeline) -> None:
    """Check that an object can run on this machine.

    Raises:
        UnsupportedHere: it asks for what only a cluster has; all of it is named.

    """
    problems = []
    if pipeline.metadata.namespace is not None:
        problems.append(Problem("metadata.namespace", "only clusters have namespaces; remove it to run it here"))
    for index, stage in enumerate(pipeline.spec.stages or ()):
        if stage.node_selector:
            hint = "only clusters select nodes by label; name a `node`, or remove it, to run it here"
            problems.append(Problem(f"spec.stages[{index}].nodeSelector", hint))
        if stage.resources:
            hint = "only clusters give stages resources of their own; remove it to run it here"
            problems.append(Problem(f"spec.stages[{index}].resources", hint))
    if problems:
        raise UnsupportedHere("\n".join(map(str, problems)))


def refuse_unknown_nodes(pipeline: LLMPipeline, running: Iterable[str]) -> None:
    """Check that an object names no node that does not run.

    Raises:
        InvalidPipeline: it does.

    """
    known = set(running)
    problems = [
        Problem(
            f"spec.stages[{index}].node",
            f"{stage.node!r} does not run ({', '.join(sorted(known)) or 'no node'} does): nodes are started with the "
            f"platform, so run `midstream down {pipeline.name}`, then `midstream up` with this file",
        )
        for index, stage in enumerate(pipeline.spec.stages or ())
        if stage.node and stage.node not in known
    ]
    if problems:
        raise InvalidPipeline(problems)


def check_free(port: int) -> None:
    """Check that nobody listens on a port of this machine.

    Raises:
        PlatformError: somebody does.

    """
    if not is_free(port):
        raise PlatformError(f"port {port} cannot be used; end what listens there, or give another with --port")


def is_free(port: int) -> bool:
    """Whether this user can listen on a port of loopback."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def free_port(but: Iterable[int] = ()) -> int:
    """Return a port of loopback that is free at this moment, none of `but`."""
    taken = set(but)
    while True:
        with socket.socket() as probe:
            probe.bind((LOOPBACK, 0))
            port: int = probe.getsockname()[1]
        if port not in taken:
            return port
