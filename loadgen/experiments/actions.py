"""What happens to the target while a run goes on, as it is written in the file.

The moment of an action is either `at_s`, seconds since the start of the run, or `after_tokens`, once so many tokens
have arrived over all streams: how long prompts take differs from machine to machine, and a change is to meet streams
that decode. Actions are carried out one after another, in the order in which they are written: one whose moment has
passed, because the one before it took its time, begins at once.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from loadgen.experiments.strict import Moment, Name, Seconds, Strict, Word

Method = Literal["pre_copy", "stop_and_copy", "recompute"]


class Timed(Strict):
    """What all actions have.

    Attributes:
        at_s: Seconds since the start of the run.
        after_tokens: Tokens that have arrived over all streams.
        name: Of the mark that the action leaves; None: its kind.
        within_s: Seconds that it may take; longer is an error, and the run is interrupted.
    """

    at_s: Moment | None = None
    after_tokens: Annotated[int, Field(ge=1)] | None = None
    name: Name | None = None
    within_s: Seconds = 120.0

    @model_validator(mode="after")
    def _one_moment(self) -> Self:
        if (self.at_s is None) == (self.after_tokens is None):
            raise ValueError("needs either at_s or after_tokens, and not both")
        return self


class Reconfigure(Timed):
    """Change the layout live, through the control API.

    Attributes:
        layers: The new layout.
        method: How KV gets to layers that change their node; None: the server's default.
        fallback: What to do when copying ahead does not converge; None: the server's default.
        may_abort: Whether a change that is undone is a result; otherwise it interrupts the run.
    """

    kind: Literal["reconfigure"]
    layers: Word
    method: Method | None = None
    fallback: Literal["abort", "recompute"] | None = None
    may_abort: bool = False


class KillStage(Timed):
    """Kill stages' processes with SIGKILL, and wait until the pipeline has recovered.

    Attributes:
        stage: Numbers of the stages, from 0; one or more.
    """

    kind: Literal["kill_stage"]
    stage: Annotated[int, Field(ge=0)] | Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]

    @property
    def stages(self) -> tuple[int, ...]:
        """The numbers, also if there is one."""
        return (self.stage,) if isinstance(self.stage, int) else self.stage


class Restart(Timed):
    """End the server and start it again on the same port: the static way to change.

    Attributes:
        layers: Of the new server; None: as before.
        args: Further flags of the new server; None: as before.
        grace_s: Seconds from SIGTERM to SIGKILL. A server that waits for its clients to hang up sends no token
            meanwhile, and to count that wait would flatter whatever a restart is compared with.
    """

    kind: Literal["restart"]
    layers: Word | None = None
    args: tuple[str, ...] | None = None
    grace_s: Seconds = 1.0
    within_s: Seconds = 300.0


class Scale(Timed):
    """Change what the pipeline may hold at once, or wait until it sleeps or serves.

    A pipeline falls asleep by itself (`--sleep-after`) and is woken by a request: nobody can order either, but the
    mark of this action says how long it took.

    Attributes:
        max_requests, max_batch_tokens, kv_blocks: New limits; None: as before.
        preempt: Compute the youngest requests again later if the blocks in use do not fit.
        until: Phase to wait for.
    """

    kind: Literal["scale"]
    max_requests: Annotated[int, Field(ge=1)] | None = None
    max_batch_tokens: Annotated[int, Field(ge=1)] | None = None
    kv_blocks: Annotated[int, Field(ge=2)] | None = None
    preempt: bool = False
    until: Literal["asleep", "serving"] | None = None

    @property
    def limits(self) -> dict[str, int | bool]:
        """The limits to change, as the control API takes them; empty for none."""
        wanted = {
            "max_requests": self.max_requests,
            "max_batch_tokens": self.max_batch_tokens,
            "kv_blocks": self.kv_blocks,
        }
        given: dict[str, int | bool] = {name: value for name, value in wanted.items() if value is not None}
        return given | {"preempt": True} if given and self.preempt else given

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        if not self.limits and self.until is None:
            raise ValueError("changes nothing: give max_requests, max_batch_tokens, kv_blocks or until")
        return self


class Mark(Timed):
    """Only mark the moment."""

    kind: Literal["mark"]
    name: Name


class Command(Timed):
    """Run a command and wait until it ends; `MIDSTREAM_ENDPOINT` in its environment is the target's address.

    Attributes:
        argv: Program and arguments; nothing goes through a shell.
        may_fail: Whether an exit status other than 0 is fine; otherwise it interrupts the run.
    """

    kind: Literal["command"]
    argv: Annotated[tuple[Annotated[str, Field(max_length=4096)], ...], Field(min_length=1)]
    may_fail: bool = False


Action = Annotated[Reconfigure | KillStage | Restart | Scale | Mark | Command, Field(discriminator="kind")]

NEEDS_CONTROL = (Reconfigure, KillStage, Scale)
