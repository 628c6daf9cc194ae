"""Multi-turn sessions: conversations whose every turn carries all earlier ones.

Sessions arrive in open loop; within a session each turn waits for the answer before it and a pause. The prompt of a
turn is the shared prefix, then for every earlier turn its message and its answer, then the new message. The answers in
it are *made up*, of exactly the length that was asked for: what the model really answered is not used, since it would
have to survive detokenising and tokenising again, and the plan would no longer follow from the seed alone. So the
server's prefix cache serves the earlier *prompts*; the previous answer is prefilled, although a server that keeps the
blocks of answers too would find real ones there. Figures of time to first token in later turns are that much higher.

`input_tokens` is the length of one message. The first one includes the special tokens that the tokenizer puts around
the whole prompt.
"""

from collections.abc import Iterator
from itertools import count
from typing import Literal

import numpy as np
from pydantic import Field

from loadgen.errors import OptionsError
from loadgen.workloads.arrivals import Arrivals, arrival_times_ns
from loadgen.workloads.distributions import Distribution, Fixed, nanoseconds, tokens
from loadgen.workloads.errors import PromptError
from loadgen.workloads.plan import PlannedRequest, PlannedUser
from loadgen.workloads.randomness import Purpose
from loadgen.workloads.workload import Lengthy, Notes, Scope


class Sessions(Lengthy):
    """Conversations of several turns."""

    kind: Literal["sessions"]
    arrivals: Arrivals
    turns: Distribution = Field(description="turns of a session")
    sessions: int | None = Field(default=None, gt=0, description="sessions in all")
    think_s: Distribution = Field(default=Fixed(value=0), description="pause between an answer and the next turn")
    max_context_tokens: int | None = Field(
        default=None, gt=0, description="a session ends before prompt and answer of a turn would be longer"
    )

    def check(self, scope: Scope) -> None:
        """Refuse an endless load, sessions without turns, and lengths for which there are no prompts."""
        super().check(scope)
        if self.sessions is None and scope.stop_ns is None:
            raise OptionsError("sessions need an end: give sessions, duration_s, or both")
        if np.rint(self.turns.stated_least) < 1:
            raise OptionsError(f"turns can be {self.turns.stated_least:g}, but a session has at least one")

    def planned_users(self, scope: Scope, notes: Notes) -> Iterator[PlannedUser]:
        """Return the sessions."""
        turns = tokens(self.turns, scope.stream(Purpose.TURNS))
        numbers = count() if self.sessions is None else range(self.sessions)
        first = 0
        for session, arrival_ns in zip(
            numbers, arrival_times_ns(self.arrivals, scope.stream(Purpose.ARRIVALS)), strict=False
        ):
            due_ns = scope.start_ns + arrival_ns
            if scope.stop_ns is not None and due_ns >= scope.stop_ns:
                return
            lengths = self._lengths(scope, session, next(turns), notes)
            yield PlannedUser(due_ns, scope.stop_ns, self._requests(scope, session, first, due_ns, lengths))
            first += len(lengths)

    def _lengths(self, scope: Scope, session: int, turns: int, notes: Notes) -> list[tuple[int, int]]:
        """Return the length of message and answer of every turn that fits into the context."""
        inputs = tokens(self.input_tokens, scope.stream(Purpose.INPUT_TOKENS, session), least=scope.least_tokens)
        outputs = tokens(self.output_tokens, scope.stream(Purpose.OUTPUT_TOKENS, session))
        context = 0 if self.shared_prefix is None else self.shared_prefix.tokens
        lengths: list[tuple[int, int]] = []
        for message, answer in zip(inputs, outputs, strict=True):
            context += message + answer
            if self.max_context_tokens is not None and context > self.max_context_tokens:
                if not lengths:
                    raise PromptError(
                        f"the first turn of session {session} needs {context} tokens with its answer, more than "
                        f"max_context_tokens ({self.max_context_tokens}): make input_tokens or output_tokens smaller"
                    )
                shortened = notes.get("sessions_shortened", 0)
                notes["sessions_shortened"] = 1 + (shortened if isinstance(shortened, int) else 0)
                return lengths
            lengths.append((message, answer))
            if len(lengths) == turns:
                return lengths
        return lengths

    def _requests(
        self, scope: Scope, session: int, first: int, due_ns: int, lengths: list[tuple[int, int]]
    ) -> Iterator[PlannedRequest]:
        thinks = nanoseconds(self.think_s, scope.stream(Purpose.THINK, session))
        history = self.prefix(scope, self.groups(scope, session))
        for turn, (message, answer) in enumerate(lengths):
            own = message - (scope.prompts.special_tokens if turn == 0 else 0)
            history = np.concatenate((history, scope.own_words(own, session, turn)))
            yield PlannedRequest(
                index=scope.number(first + turn),
                due_ns=due_ns if turn == 0 else None,
                user=scope.number(session),
                turn=turn,
                think_ns=0 if turn == 0 else next(thinks),
                prompt=scope.prompts.prompt(history),
                max_tokens=answer,
                phase=scope.phase,
            )
            history = np.concatenate((history, scope.answer_words(answer, session, turn)))
