"""Closed loop: a fixed number of users, each of whom asks again once answered and having thought.

User u sends the requests u, u + users, u + 2 * users, ... of the plan, whatever the others do: the requests and who
sends them are the same in every run, but a total of `requests` is shared out evenly, so fast users may be done first.
A closed loop slows down with the server: for latencies under a given load use open loop.
"""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from loadgen.errors import OptionsError
from loadgen.workloads.distributions import Distribution, Fixed, nanoseconds, tokens
from loadgen.workloads.plan import PlannedRequest, PlannedUser
from loadgen.workloads.randomness import Purpose
from loadgen.workloads.workload import Lengthy, Notes, Scope, to_ns


class ClosedLoop(Lengthy):
    """A fixed number of users, one request at a time each."""

    kind: Literal["closed"]
    users: int = Field(gt=0, le=1_000_000)
    requests: int | None = Field(default=None, gt=0, description="requests in all")
    think_s: Distribution = Field(default=Fixed(value=0), description="pause of a user between answer and next request")
    ramp_up_s: float = Field(default=0, ge=0, description="users begin evenly spread over this time")

    def check(self, scope: Scope) -> None:
        """Refuse an endless load and lengths for which there are no prompts."""
        super().check(scope)
        if self.requests is None and scope.stop_ns is None:
            raise OptionsError("a closed loop needs an end: give requests, duration_s, or both")

    def concurrent_users(self) -> int | None:
        """Return the number of users."""
        return self.users

    def total_requests(self) -> int | None:
        """Return the number of requests unless time may cut it short."""
        return self.requests if self.duration_s is None else None

    def planned_users(self, scope: Scope, notes: Notes) -> Iterator[PlannedUser]:  # noqa: ARG002 nothing to note
        """Return the users."""
        active = self.users if self.requests is None else min(self.users, self.requests)
        for user in range(active):
            start_ns = scope.start_ns + to_ns(self.ramp_up_s * user / self.users)
            if scope.stop_ns is None or start_ns < scope.stop_ns:
                yield PlannedUser(start_ns, scope.stop_ns, self._requests(scope, user))

    def _requests(self, scope: Scope, user: int) -> Iterator[PlannedRequest]:
        inputs = tokens(self.input_tokens, scope.stream(Purpose.INPUT_TOKENS, user), least=scope.least_tokens)
        outputs = tokens(self.output_tokens, scope.stream(Purpose.OUTPUT_TOKENS, user))
        thinks = nanoseconds(self.think_s, scope.stream(Purpose.THINK, user))
        groups = self.groups(scope, user)
        local = user
        while self.requests is None or local < self.requests:
            yield PlannedRequest(
                index=scope.number(local),
                due_ns=None,
                user=scope.number(user),
                turn=0,
                think_ns=0 if local == user else next(thinks),
                prompt=scope.prompt(self.prefix(scope, groups), next(inputs), local),
                max_tokens=next(outputs),
                phase=scope.phase,
            )
            local += self.users
