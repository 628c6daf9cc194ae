"""Phases: workloads one after another, for loads that change their nature.

Each phase begins when its time has come, whatever is left of the one before: requests under way go on, but no user
begins one past the end of its own phase. Phases are independent of each other's numbers: lengthening, adding or
reordering phases leaves the requests of the others as they are, but for their indices and the words that tell
prompts apart. A phase's name is part of its randomness.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from loadgen.errors import OptionsError
from loadgen.workloads.closed_loop import ClosedLoop
from loadgen.workloads.configuration import Strict
from loadgen.workloads.open_loop import OpenLoop
from loadgen.workloads.plan import PlannedUser
from loadgen.workloads.sessions import Sessions
from loadgen.workloads.trace_replay import TraceReplay
from loadgen.workloads.workload import BaseWorkload, Notes, Scope, to_ns

SinglePhase = Annotated[ClosedLoop | OpenLoop | Sessions | TraceReplay, Field(discriminator="kind")]


class Phase(Strict):
    """A workload for a time."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)
    duration_s: float = Field(gt=0)
    workload: SinglePhase

    @model_validator(mode="after")
    def _one_duration(self) -> Self:
        own = self.workload.duration_s
        if own is not None and own != self.duration_s:
            raise ValueError(f"phase {self.name!r} lasts {self.duration_s:g} s: leave duration_s out of its workload")
        return self


class Phases(BaseWorkload):
    """Workloads one after another."""

    kind: Literal["phases"]
    phases: tuple[Phase, ...] = Field(min_length=1)

    @field_validator("phases")
    @classmethod
    def _names_differ(cls, phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
        names = [phase.name for phase in phases]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two phases are called {name!r}: give each a name of its own")
        return phases

    def stop_ns(self) -> int | None:
        """Return how long all phases last."""
        return to_ns(sum(phase.duration_s for phase in self.phases))

    def check(self, scope: Scope) -> None:
        """Refuse what any phase refuses."""
        for phase, part in self._parts(scope):
            try:
                phase.workload.check(part)
            except OptionsError as error:
                raise OptionsError(f"phase {phase.name!r}: {error}") from error

    def planned_users(self, scope: Scope, notes: Notes) -> Iterator[PlannedUser]:
        """Return the users of all phases."""
        for phase, part in self._parts(scope):
            own: Notes = {}
            yield from phase.workload.planned_users(part, own)
            notes.update({f"{phase.name}: {name}": value for name, value in own.items()})

    def _parts(self, scope: Scope) -> Iterator[tuple[Phase, Scope]]:
        start_s = 0.0
        for position, phase in enumerate(self.phases):
            yield (
                phase,
                replace(
                    scope,
                    phase=phase.name,
                    position=position,
                    phases=len(self.phases),
                    start_ns=scope.start_ns + to_ns(start_s),
                    stop_ns=scope.start_ns + to_ns(start_s + phase.duration_s),
                ),
            )
            start_s += phase.duration_s
