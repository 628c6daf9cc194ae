"""What every kind of workload has in common, and the plan made of one.

A workload is a frozen description. `plan` puts a seed and a source of prompts to it. Where in a larger plan it stands
(which phase, from when to when) is its *scope*; a workload on its own has the scope of the whole run.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from pydantic import Field

from loadgen.errors import OptionsError
from loadgen.workloads.configuration import Strict
from loadgen.workloads.contents import Contents, Words
from loadgen.workloads.distributions import Distribution
from loadgen.workloads.errors import PromptError
from loadgen.workloads.plan import Plan, PlannedUser, Prompt
from loadgen.workloads.prompts import PromptSource
from loadgen.workloads.randomness import Purpose, stream

Notes = dict[str, int | str | list[str]]


def to_ns(seconds: float) -> int:
    """Return seconds as nanoseconds."""
    return round(seconds * 1e9)


@dataclass(frozen=True)
class Scope:
    """Where in a plan a workload stands.

    Attributes:
        seed: The plan's seed.
        prompts: The plan's source of prompts.
        contents: What the prompts are made of.
        phase: Name of the phase, None if there are none.
        position: The phase's position among `phases`.
        phases: Number of phases.
        start_ns: When it begins, on the run's axis.
        stop_ns: When it ends, if it ends by time.
    """

    seed: int
    prompts: PromptSource
    contents: Contents
    phase: str | None = None
    position: int = 0
    phases: int = 1
    start_ns: int = 0
    stop_ns: int | None = None

    def number(self, local: int) -> int:
        """Return the plan's number for this workload's request or user `local`: phases take turns."""
        return local * self.phases + self.position

    def stream(self, purpose: Purpose, *keys: int) -> np.random.Generator:
        """Return this workload's stream of randomness; a phase's depends on its name, not on its position."""
        return stream(self.seed, purpose, self.phase or "", *keys)

    def own_words(self, count: int, local: int, turn: int = 0) -> Words:
        """Return `count` words of request (or session) `local` alone; those of turn 0 begin like no other's."""
        keys = (self.phase or "", local, turn)
        return self.contents.own(count, self.number(local) if turn == 0 else None, *keys)

    def answer_words(self, count: int, session: int, turn: int) -> Words:
        """Return `count` words of a made-up answer."""
        return self.contents.answer(count, self.phase or "", session, turn)

    @property
    def least_tokens(self) -> int:
        """The shortest prompt that can be made: one word."""
        return self.prompts.special_tokens + 1

    def prompt(self, prefix: Words, own_tokens: int, local: int) -> Prompt:
        """Return a prompt of `prefix` and `own_tokens` of its own, the tokenizer's special tokens among those."""
        own = own_tokens - self.prompts.special_tokens
        if own < 1:
            raise PromptError(
                f"a prompt of {own_tokens} tokens of its own cannot be made: the tokenizer adds "
                f"{self.prompts.special_tokens} special tokens. Ask for at least {self.least_tokens}."
            )
        return self.prompts.prompt(np.concatenate((prefix, self.own_words(own, local))))


class SharedPrefix(Strict):
    """Tokens that prompts begin with in common, such as a system prompt; they come on top of `input_tokens`."""

    tokens: int = Field(gt=0)
    groups: int = Field(default=1, gt=0, description="number of different prefixes; each request gets one by chance")


class BaseWorkload(Strict):
    """The base of all kinds."""

    def plan(self, seed: int, prompts: PromptSource) -> Plan:
        """Return the plan of this workload; nothing is made before its users are asked for.

        Raises:
            OptionsError: the description does not go with these prompts, or has no end.
            TraceError: a trace cannot be read at all.
        """
        scope = Scope(seed, prompts, Contents(seed, prompts.vocabulary), stop_ns=self.stop_ns())
        self.check(scope)
        return WorkloadPlan(self, scope)

    @abstractmethod
    def check(self, scope: Scope) -> None:
        """Refuse what can be seen to be wrong before anything is sent."""

    @abstractmethod
    def planned_users(self, scope: Scope, notes: Notes) -> Iterator[PlannedUser]:
        """Return the users in the order of their start, and note what results should say about them."""

    def stop_ns(self) -> int | None:
        """Return how long the workload lasts, if it ends by time."""
        return None

    def concurrent_users(self) -> int | None:
        """Return the number of users of a closed loop."""
        return None

    def total_requests(self) -> int | None:
        """Return the number of requests if it is known."""
        return None


class Timed(BaseWorkload):
    """The base of kinds that end after some time, some number of requests, or whichever comes first."""

    duration_s: float | None = Field(
        default=None, gt=0, description="no request begins later; given by a phase to its workload"
    )

    def stop_ns(self) -> int | None:
        """Return how long the workload lasts, if it ends by time."""
        return None if self.duration_s is None else to_ns(self.duration_s)


class Lengthy(Timed):
    """The base of kinds whose lengths are drawn from distributions."""

    input_tokens: Distribution = Field(description="prompt length, without the shared prefix")
    output_tokens: Distribution = Field(description="tokens to generate")
    shared_prefix: SharedPrefix | None = None

    def check(self, scope: Scope) -> None:
        """Refuse lengths for which there are no prompts."""
        for name, distribution, least in (
            ("input_tokens", self.input_tokens, scope.least_tokens),
            ("output_tokens", self.output_tokens, 1),
        ):
            if np.rint(distribution.stated_least) < least:
                raise OptionsError(
                    f"{name} can be {distribution.stated_least:g}, but the least is {least}"
                    + (" with this tokenizer, which adds special tokens of its own" if least > 1 else "")
                )

    def prefix(self, scope: Scope, groups: Iterator[int]) -> Words:
        """Return the shared prefix of the next request, empty if there is none."""
        if self.shared_prefix is None:
            return np.empty(0, np.int64)
        return scope.contents.prefix(self.shared_prefix.tokens, next(groups))

    def groups(self, scope: Scope, *keys: int) -> Iterator[int]:
        """Return endless prefix groups."""
        groups = 1 if self.shared_prefix is None else self.shared_prefix.groups
        generator = scope.stream(Purpose.PREFIX_GROUP, *keys)
        while True:
            yield int(generator.integers(groups))


@dataclass
class WorkloadPlan:
    """A workload in its scope; see `loadgen.workloads.plan.Plan`."""

    workload: BaseWorkload
    scope: Scope
    _notes: Notes = field(default_factory=dict)

    @property
    def concurrent_users(self) -> int | None:
        """Number of users of a closed loop, None for every other kind."""
        return self.workload.concurrent_users()

    @property
    def total_requests(self) -> int | None:
        """Number of requests if it is known beforehand."""
        return self.workload.total_requests()

    @property
    def duration_ns(self) -> int | None:
        """When the last request begins at the latest, if that is known beforehand."""
        return self.scope.stop_ns

    def users(self) -> Iterator[PlannedUser]:
        """Return the users in the order of their start."""
        self._notes = {}
        return self.workload.planned_users(self.scope, self._notes)

    def notes(self) -> Mapping[str, int | str | list[str]]:
        """Return what results should say of the latest pass."""
        return dict(self._notes)
