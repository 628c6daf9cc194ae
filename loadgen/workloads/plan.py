"""What a workload becomes: users, each with requests that go one after another.

One shape serves every kind of load, so that a runner needs one loop:

- closed loop: N users that begin at 0 and each have a long row of requests without due times;
- open loop and traces: one user per request, who begins when the request is due;
- sessions: one user per session; the first turn has a due time, later turns follow the previous answer;
- phases: the users of one phase after those of another.

A runner takes users from `Plan.users()` in the order of `start_ns`, waits for that moment and runs each in a task:

    for request in user.requests:
        wait for request.due_ns if there is one, else for request.think_ns after the previous answer
        stop if it is now at or past user.stop_ns          (due_ns is always before it)
        send, and wait for the end of the answer

Both iterators are lazy and make prompts as they go, which may take a millisecond and more: draw from them in a thread,
ahead of time. Nothing in a plan depends on when or in which order users are advanced: the same seed gives the same
requests, byte by byte. A user's iterator serves one pass; `Plan.users()` may be called again for another.

If an answer fails, what follows of that user still makes sense (later turns carry made-up answers): go on.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt of exactly known length.

    Attributes:
        tokens: Its length as the server counts it, the tokenizer's own special tokens included.
        text: The text, which the target's tokenizer turns into exactly `tokens` tokens; None if the source knows
            only token ids.
        token_ids: The ids, None if the source cannot know them. Where both are given they say the same.
    """

    tokens: int
    text: str | None
    token_ids: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request of a plan.

    Attributes:
        index: Its identity in all results: unique, the same for the same seed. Numbered 0, 1, 2, ... in the order of
            the plan; with holes where a closed loop ends by time and within `phases`.
        due_ns: When to send it on the run's axis (open loop, traces, first turns); None: as soon as its user is free.
        user: The user or session that sends it; None in open loop and traces, where every request is on its own.
        turn: 0 but for later turns of a session.
        think_ns: Pause of the user before it, after the end of the previous answer; 0 for a user's first request.
        prompt: What to send.
        max_tokens: Tokens to generate, at least 1.
        phase: Name of the phase it belongs to, if the workload has phases.
    """

    index: int
    due_ns: int | None
    user: int | None
    turn: int
    think_ns: int
    prompt: Prompt
    max_tokens: int
    phase: str | None = None


@dataclass(frozen=True, slots=True)
class PlannedUser:
    """Requests that go one after another.

    Attributes:
        start_ns: When the user begins, on the run's axis; the first request's due time if that has one.
        stop_ns: The user begins no request at or after this moment; None: ends when its requests do.
        requests: The requests, lazily. May be endless if `stop_ns` is given.
    """

    start_ns: int
    stop_ns: int | None
    requests: Iterator[PlannedRequest]


class Plan(Protocol):
    """A workload with its seed and its prompts."""

    @property
    def concurrent_users(self) -> int | None:
        """Number of users of a closed loop, None for every other kind."""

    @property
    def total_requests(self) -> int | None:
        """Number of requests if it is known beforehand (for a progress display), else None."""

    @property
    def duration_ns(self) -> int | None:
        """No request begins at or after this moment; None if that is not known beforehand."""

    def users(self) -> Iterator[PlannedUser]:
        """Return the users in the order of `start_ns`; constant memory however many there are.

        Raises:
            TraceError: a trace cannot be read, or has a row that it should not have (while iterating).
            PromptError: a prompt of the wanted length cannot be made (while iterating).
        """

    def notes(self) -> Mapping[str, int | str | list[str]]:
        """Return what results should say of the latest pass of `users`, once it has ended.

        For example how many rows of a trace were left out.
        """


def requests_in_order(plan: Plan) -> Iterator[PlannedRequest]:
    """Return all requests of a plan, user by user, without sending any; for listings and tests.

    Open loop and traces come in the order of their due times. Endless for users that end by time alone.
    """
    for user in plan.users():
        yield from user.requests
