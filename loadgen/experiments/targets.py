"""What an experiment measures: an endpoint that is there, or a server that it starts for each run and ends after it.

Every kind but `endpoint` is started as a process of its own on a free port of loopback. Secrets are in no file: a
server inherits the environment, and an API key is named by its variable. Environment in a file is for settings, so a
name that smells of a secret is refused.
"""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from loadgen.benchmarks.reconfigure.options import DEFAULT_ENV, DEFAULT_SERVER_ARGS
from loadgen.experiments.strict import Seconds, Strict, Word
from loadgen.link import KINDS, LOOPBACK

NODES = ("edge-1", "edge-2")

_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|PRIVATE", re.IGNORECASE)


def _no_secret(env: dict[str, str]) -> dict[str, str]:
    for name in env:
        if _SECRET.search(name):
            raise ValueError(f"{name} looks like a secret: set it where the command runs, servers inherit it")
    return env


def _known_link(kind: str) -> str:
    if kind not in KINDS:
        raise ValueError(f"is none of {', '.join(KINDS)}")
    return kind


Environment = Annotated[dict[str, str], AfterValidator(_no_secret)]
Arguments = tuple[Annotated[str, Field(max_length=4096)], ...]


class EndpointTarget(Strict):
    """A server that runs already.

    Attributes:
        url: Its address, with or without `/v1`.
        model: Model to ask for; None: the first one that it lists.
        api_key_env: Environment variable that holds its API key.
        midstream: Whether it has Midstream's control API, for changes, journal and stages.
    """

    kind: Literal["endpoint"]
    url: Annotated[str, Field(pattern=r"^https?://[^\s@?#]+$")]
    model: Word | None = None
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    midstream: bool = False

    @property
    def base_url(self) -> str:
        """The address without `/v1` at its end."""
        return self.url.rstrip("/").removesuffix("/v1")


class Nodes(Strict):
    """Two node runtimes, `edge-1` and `edge-2`, that layouts may name.

    Attributes:
        link: What joins them: 1gbit or 100mbit (a shaped link between two network namespaces), or loopback. Where a
            shaped link cannot be made, loopback is used, and the run says so.
        rate_limit: Most bytes per second for copying, as `midstream node run` takes it.
    """

    link: Annotated[str, AfterValidator(_known_link)] = LOOPBACK
    rate_limit: Word | None = None


class StartedTarget(Strict):
    """What all started servers have.

    Attributes:
        args: Further flags of the server.
        env: Added to its environment.
        command: Command line before the arguments, in place of the one that is installed here.
        start_within_s: Seconds until it must be ready.
    """

    args: Arguments = ()
    env: Environment = Field(default_factory=dict)
    command: Arguments | None = Field(default=None, min_length=1)
    start_within_s: Seconds = 300.0


class MidstreamTarget(StartedTarget):
    """`midstream serve`.

    Attributes:
        layers: Layers per stage, such as 15,15; with `nodes`, such as 15@edge-1,15@edge-2.
        model: Hub id or folder; None: the built-in model.
        nodes: Node runtimes to start first; None: all stages on the head's own machine.
    """

    kind: Literal["midstream"]
    layers: Word
    model: Word | None = None
    args: Arguments = DEFAULT_SERVER_ARGS
    env: Environment = Field(default_factory=lambda: dict(DEFAULT_ENV))
    nodes: Nodes | None = None

    @model_validator(mode="after")
    def _layers_name_the_nodes(self) -> Self:
        check_layers(self.layers, placed=self.nodes is not None)
        return self


class VllmTarget(StartedTarget):
    """Stock vLLM in one process, with the same flags and environment as `midstream` by default.

    Attributes:
        model: Hub id or folder; None: the built-in model.
    """

    kind: Literal["vllm"]
    model: Word | None = None
    args: Arguments = DEFAULT_SERVER_ARGS
    env: Environment = Field(default_factory=lambda: dict(DEFAULT_ENV))


class MockTarget(StartedTarget):
    """The mock server, which has Midstream's control API.

    Attributes:
        layers: Layers per stage that it claims to have.
    """

    kind: Literal["mock"]
    layers: Word = "15,15"
    start_within_s: Seconds = 60.0

    @model_validator(mode="after")
    def _layers_are_numbers(self) -> Self:
        check_layers(self.layers, placed=None)
        return self


Target = Annotated[EndpointTarget | MidstreamTarget | VllmTarget | MockTarget, Field(discriminator="kind")]


def has_control(target: Any) -> bool:
    """Whether a target has Midstream's control API."""
    return isinstance(target, MidstreamTarget | MockTarget) or (isinstance(target, EndpointTarget) and target.midstream)


def check_layers(layers: str, *, placed: bool | None) -> None:
    """Refuse what is no layout: numbers of layers by commas, each with a node if there are nodes (None: either).

    Raises:
        ValueError: in words that fit behind the name of the field.
    """
    node = rf"@({'|'.join(NODES)})"
    forms = {True: rf"[1-9]\d*{node}", False: r"[1-9]\d*", None: r"[1-9]\d*(@[a-z0-9.-]+)?"}
    wrong = [part for part in layers.split(",") if not re.fullmatch(forms[placed], part.strip())]
    if wrong:
        example = f"15@{NODES[0]},15@{NODES[1]}" if placed else "15,15"
        raise ValueError(f"layers {layers!r}: {wrong[0]!r} is no number of layers; write, for example, {example}")
