"""What an experiment is: arms that differ in some settings, each run a number of times.

`Settings` is what one arm does, after its overrides. An override replaces a field of the file; where both are mappings
of the same `kind` (or have none) it is laid over field by field, so that an arm says only what is different:

    target: {kind: midstream, layers: "15,15"}
    arms:
    - name: even
    - name: front
      target: {layers: "8,22"}
    - name: stock
      target: {kind: vllm}          # another kind: nothing of the target above is kept

Runs are made repeat by repeat, all arms in each, and every second repeat backwards: the noise of the machine, and what
drifts, hits all arms. All arms of a repeat have the same seed, so they send the same prompts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from loadgen.experiments.actions import NEEDS_CONTROL, Action, KillStage, Reconfigure, Restart
from loadgen.experiments.analysis.kinds import Analysis
from loadgen.experiments.client_settings import ClientSettings
from loadgen.experiments.strict import Name, Strict
from loadgen.experiments.targets import MidstreamTarget, MockTarget, StartedTarget, Target, check_layers, has_control
from loadgen.results.manifest import Slo
from loadgen.workloads.kinds import Workload
from loadgen.workloads.prompts import Prompts

API_VERSION = "midstream.dev/v1alpha1"
KIND = "Experiment"
MOST_RUNS = 1000


class JournalMarks(Strict):
    """Marks from the journal of a target with Midstream's control API.

    Attributes:
        events: Which events of the journal; the default is what a client may notice.
    """

    kind: Literal["journal"]
    events: tuple[str, ...] = (
        "stage lost",
        "recovered",
        "node lost",
        "node ready",
        "asleep",
        "awake",
        "KV blocks changed",
        "layers re-placed",
        "ended",
    )


class BrokerMarks(Strict):
    """Marks from the events that go through a CloudEvents broker, as `midstream up` has one.

    Attributes:
        url: The broker's address.
        subject, type: Only events with this subject or type; None: all.
    """

    kind: Literal["broker"]
    url: Annotated[str, Field(pattern=r"^https?://[^\s@?#]+$")] = "http://127.0.0.1:8090"
    subject: str | None = None
    type: str | None = None


MarkSource = Annotated[JournalMarks | BrokerMarks, Field(discriminator="kind")]


class WarmUp(Strict):
    """What is sent before a run and not measured, so that the first request measured is like the others.

    Attributes:
        requests: How many, all at once.
        prompt_tokens, max_tokens: Their lengths.
    """

    requests: Annotated[int, Field(ge=0, le=1000)] = 4
    prompt_tokens: Annotated[int, Field(ge=1)] = 16
    max_tokens: Annotated[int, Field(ge=1)] = 16


class Settings(Strict):
    """What one arm does.

    Attributes:
        target: What is measured.
        workload: What is sent when.
        prompts: Where prompts of exact length come from; None: the server's own tokenizer.
        client: How it is sent.
        slo: Service level that goodput is counted by.
        actions: What happens meanwhile.
        marks: Where further marks come from.
        warm_up: What is sent before.
        settle_s: Seconds without load between warm-up and run; engines go on spinning after their last answer.
    """

    target: Target
    workload: Workload
    prompts: Prompts | None = None
    client: ClientSettings = ClientSettings()
    slo: Slo = Slo()
    actions: tuple[Action, ...] = ()
    marks: tuple[MarkSource, ...] = ()
    warm_up: WarmUp = WarmUp()
    settle_s: Annotated[float, Field(ge=0, le=600)] = 3.0

    @model_validator(mode="after")
    def _the_target_can_do_it(self) -> Self:
        latest = 0.0
        for number, action in enumerate(self.actions):
            trouble = unsuited(action, self.target)
            if trouble is None and action.at_s is not None and action.at_s < latest:
                trouble = f"is at {action.at_s:g} s, but one before it at {latest:g} s: put it first"
            if trouble is not None:
                raise ValueError(f"actions[{number}] ({action.kind}) {trouble}")
            latest = latest if action.at_s is None else action.at_s
        if any(source.kind == "journal" for source in self.marks) and not has_control(self.target):
            raise ValueError(
                f"marks of kind journal need a target with Midstream's control API, which {self.target.kind!r} has not"
            )
        return self


def unsuited(action: Action, target: Target) -> str | None:
    """Return why a target cannot do this; None if it can."""
    kind = target.kind
    if isinstance(action, NEEDS_CONTROL) and not has_control(target):
        return f"needs a target with Midstream's control API, which {kind!r} has not"
    if isinstance(action, KillStage) and not isinstance(target, MidstreamTarget):
        return "needs a target of kind midstream: only what was started here is killed"
    if isinstance(action, Restart) and not isinstance(target, StartedTarget):
        return f"needs a target that is started here, which {kind!r} is not"
    layers = action.layers if isinstance(action, Reconfigure | Restart) else None
    if layers is None:
        return None
    if isinstance(action, Restart) and not isinstance(target, MidstreamTarget | MockTarget):
        return f"has layers, but {kind!r} has none"
    try:
        check_layers(layers, placed=target.nodes is not None if isinstance(target, MidstreamTarget) else None)
    except ValueError as error:
        return f"cannot be made: {error}"
    return None


class Metadata(Strict):
    """The experiment's name, and what it shows."""

    name: Name
    description: str = ""


class Header(Strict):
    """What all arms have in common.

    Attributes:
        seed: Of the first repeat; each further one has the next.
        repeats: How often each arm runs.
        keep_target: Whether runs that follow each other with equal targets use one server, whose layers are put back
            between them; otherwise every run gets a fresh one.
        analysis: The table that the experiment is for, beside its report.
    """

    apiVersion: Literal["midstream.dev/v1alpha1"]  # noqa: N815 - as in every object of this kind
    kind: Literal["Experiment"]
    metadata: Metadata
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1
    repeats: Annotated[int, Field(ge=1, le=MOST_RUNS)] = 1
    keep_target: bool = False
    analysis: Analysis | None = None


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm: its name and what it does."""

    name: str
    settings: Settings


@dataclass(frozen=True, slots=True)
class Run:
    """One run: an arm, the number of its repeat from 0, and its seed."""

    arm: Arm
    repeat: int
    seed: int


@dataclass(frozen=True, slots=True)
class Experiment:
    """An experiment that was read and checked.

    Attributes:
        header: What all arms have in common.
        arms: At least one, with distinct names.
    """

    header: Header
    arms: tuple[Arm, ...]

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self.header.metadata.name

    def runs(self) -> list[Run]:
        """Return the runs in the order in which they are made."""
        return [
            Run(arm, repeat, self.header.seed + repeat)
            for repeat in range(self.header.repeats)
            for arm in (self.arms if repeat % 2 == 0 else self.arms[::-1])
        ]

    def as_data(self) -> dict[str, Any]:
        """Return everything as plain data, with defaults filled in: what is kept with the results."""
        return {
            **self.header.model_dump(mode="json"),
            "arms": [{"name": arm.name, **arm.settings.model_dump(mode="json")} for arm in self.arms],
        }


def overlaid(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `override` laid over it; see the module."""
    result = dict(base)
    for key, value in override.items():
        below: Any = result.get(key)
        result[key] = value
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        if both and value.get("kind", below.get("kind")) == below.get("kind"):
            result[key] = overlaid(below, value)
    return result
