"""Open loop: requests arrive when they arrive, however busy the server is."""

from collections.abc import Iterator
from itertools import count
from typing import Literal

from pydantic import Field

from loadgen.errors import OptionsError
from loadgen.workloads.arrivals import Arrivals, arrival_times_ns
from loadgen.workloads.distributions import tokens
from loadgen.workloads.plan import PlannedRequest, PlannedUser
from loadgen.workloads.randomness import Purpose
from loadgen.workloads.workload import Lengthy, Notes, Scope


class OpenLoop(Lengthy):
    """Requests that do not wait for each other."""

    kind: Literal["open"]
    arrivals: Arrivals
    requests: int | None = Field(default=None, gt=0, description="requests in all")

    def check(self, scope: Scope) -> None:
        """Refuse an endless load and lengths for which there are no prompts."""
        super().check(scope)
        if self.requests is None and scope.stop_ns is None:
            raise OptionsError("an open loop needs an end: give requests, duration_s, or both")

    def total_requests(self) -> int | None:
        """Return the number of requests unless time may cut it short."""
        return self.requests if self.duration_s is None else None

    def planned_users(self, scope: Scope, notes: Notes) -> Iterator[PlannedUser]:  # noqa: ARG002 nothing to note
        """Return one user for each request."""
        inputs = tokens(self.input_tokens, scope.stream(Purpose.INPUT_TOKENS), least=scope.least_tokens)
        outputs = tokens(self.output_tokens, scope.stream(Purpose.OUTPUT_TOKENS))
        groups = self.groups(scope)
        locals_ = count() if self.requests is None else range(self.requests)
        # The arrivals come second: where the rate falls to 0 for good they end first.
        for local, arrival_ns in zip(
            locals_, arrival_times_ns(self.arrivals, scope.stream(Purpose.ARRIVALS)), strict=False
        ):
            due_ns = scope.start_ns + arrival_ns
            if scope.stop_ns is not None and due_ns >= scope.stop_ns:
                return
            request = PlannedRequest(
                index=scope.number(local),
                due_ns=due_ns,
                user=None,
                turn=0,
                think_ns=0,
                prompt=scope.prompt(self.prefix(scope, groups), next(inputs), local),
                max_tokens=next(outputs),
                phase=scope.phase,
            )
            yield PlannedUser(due_ns, scope.stop_ns, iter((request,)))
