"""Replay of a trace: its arrivals and lengths with prompts of our own.

The first row that is meant (`from_s` into the trace, and of the wanted model) is due at 0; the others follow at their
distance from it, times `time_scale`. `sample` keeps each row with that probability, decided by the seed and the row's
place in the file, so that one bad row more does not choose other rows. Longer prompts and answers are cut to the caps.

Prompts of Mooncake traces are put together from blocks of 512 tokens, one for each hash: prompts share exactly the
blocks that share hashes. Where the tokenizer puts special tokens before a text, these are the first of the first
block. Prompts of the other formats share nothing.

Rows without input or without output tokens (failed requests, in BurstGPT) cannot be replayed; they are left out and
counted. Prompts shorter than the tokenizer can make are lengthened to that and counted.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from loadgen.workloads.errors import TraceError
from loadgen.workloads.plan import PlannedRequest, PlannedUser, Prompt
from loadgen.workloads.randomness import Purpose, uniform_numbers
from loadgen.workloads.trace_files import MOONCAKE_BLOCK_TOKENS, BadRow, TraceFormat, TraceRow, read_trace
from loadgen.workloads.workload import Notes, Scope, Timed, to_ns

_NAMED = 10  # bad rows that are named; the rest are only counted


@dataclass
class _Tally:
    """What became of the rows so far."""

    rows: int = 0
    bad: int = 0
    before_start: int = 0
    other_model: int = 0
    without_tokens: int = 0
    left_out_by_sample: int = 0
    lengthened: int = 0
    replayed: int = 0
    chance: float = 0.0  # the latest row's draw, to be compared with the share to replay
    first_bad: list[str] = field(default_factory=list)
    models: set[str] = field(default_factory=set)

    def told(self) -> str:
        """Return it as a sentence."""
        named = {
            "cannot be right": self.bad,
            "lie before from_s": self.before_start,
            f"are of other models ({', '.join(sorted(self.models))})": self.other_model,
            "have no input or no output tokens": self.without_tokens,
            "were left out by sample": self.left_out_by_sample,
        }
        parts = [f"{count} {what}" for what, count in named.items() if count]
        return f"Of {self.rows} rows {', '.join(parts) or 'none is left'}." + "".join(
            f" First bad row: {told}." for told in self.first_bad[:1]
        )

    def tell(self, notes: Notes) -> None:
        """Write it into the notes: always the rows, else what there is."""
        notes.update({"rows": self.rows, "rows_bad": self.bad})
        for name, value in (
            ("rows_before_start", self.before_start),
            ("rows_of_other_models", self.other_model),
            ("rows_without_tokens", self.without_tokens),
            ("rows_left_out_by_sample", self.left_out_by_sample),
            ("prompts_lengthened", self.lengthened),
        ):
            if value:
                notes[name] = value
        if self.first_bad:
            notes["first_bad_rows"] = list(self.first_bad)


class TraceReplay(Timed):
    """The arrivals and lengths of a recorded trace."""

    kind: Literal["trace"]
    format: TraceFormat
    path: Path = Field(description="the file, gzip-compressed or not; relative paths are from the working directory")
    time_scale: float = Field(default=1, gt=0, description="0.5 replays twice as fast")
    from_s: float = Field(default=0, ge=0, description="leave out this much of the trace's beginning (its own time)")
    requests: int | None = Field(default=None, gt=0, description="end after this many requests")
    sample: float = Field(default=1, gt=0, le=1, description="share of the rows to replay")
    max_input_tokens: int | None = Field(default=None, gt=0)
    max_output_tokens: int | None = Field(default=None, gt=0)
    model: str | None = Field(default=None, min_length=1, description="replay only the rows of this model (burstgpt)")
    on_bad_rows: Literal["fail", "count"] = Field(
        default="fail", description="what a row that cannot be right does: end the run, or be left out and counted"
    )

    @model_validator(mode="after")
    def _models_are_known(self) -> Self:
        if self.model is not None and self.format != "burstgpt":
            raise ValueError(f"{self.format} traces do not say which model was asked: leave model out")
        return self

    def check(self, scope: Scope) -> None:  # noqa: ARG002 any prompts will do
        """Refuse a file that is no such trace at all, before anything is sent."""
        for _ in read_trace(self.path, self.format):
            break

    def planned_users(self, scope: Scope, notes: Notes) -> Iterator[PlannedUser]:
        """Return one user for each row that is replayed."""
        tally = _Tally()
        try:
            yield from self._users(scope, tally)
        finally:
            tally.tell(notes)

    def _users(self, scope: Scope, tally: _Tally) -> Iterator[PlannedUser]:
        chances = uniform_numbers(scope.stream(Purpose.SAMPLE))
        origin_ns: int | None = None
        for row in self._meant_rows(tally, chances):
            origin_ns = row.at_ns if origin_ns is None else origin_ns
            due_ns = scope.start_ns + round((row.at_ns - origin_ns) * self.time_scale)
            if scope.stop_ns is not None and due_ns >= scope.stop_ns:
                break
            if tally.chance >= self.sample:
                tally.left_out_by_sample += 1
                continue
            request = self._request(scope, tally, row, due_ns)
            tally.replayed += 1
            yield PlannedUser(due_ns, scope.stop_ns, iter((request,)))
            if tally.replayed == self.requests:
                break
        if not tally.replayed:
            raise TraceError(f"{self.path}: nothing to replay. {tally.told()}")

    def _meant_rows(self, tally: _Tally, chances: Iterator[float]) -> Iterator[TraceRow]:
        """Return the rows to replay but for sampling, and count the others."""
        begin_ns: int | None = None
        for row in read_trace(self.path, self.format):
            tally.rows += 1
            tally.chance = next(chances)
            if isinstance(row, BadRow):
                self._take_bad(row, tally)
                continue
            begin_ns = row.at_ns + to_ns(self.from_s) if begin_ns is None else begin_ns
            if row.at_ns < begin_ns:
                tally.before_start += 1
            elif self.model is not None and row.model != self.model:
                tally.other_model += 1
                if row.model and len(tally.models) < _NAMED:
                    tally.models.add(row.model)
            elif not (row.input_tokens and row.output_tokens):
                tally.without_tokens += 1
            else:
                yield row

    def _take_bad(self, row: BadRow, tally: _Tally) -> None:
        told = f"line {row.line}: {row.reason}"
        if self.on_bad_rows == "fail":
            raise TraceError(f"{self.path}, {told}. To leave such rows out and count them: on_bad_rows: count.")
        tally.bad += 1
        if len(tally.first_bad) < _NAMED:
            tally.first_bad.append(told)

    def _request(self, scope: Scope, tally: _Tally, row: TraceRow, due_ns: int) -> PlannedRequest:
        length = row.input_tokens if self.max_input_tokens is None else min(row.input_tokens, self.max_input_tokens)
        if length < scope.least_tokens:
            length = scope.least_tokens
            tally.lengthened += 1
        output = row.output_tokens if self.max_output_tokens is None else min(row.output_tokens, self.max_output_tokens)
        return PlannedRequest(
            index=scope.number(tally.replayed),
            due_ns=due_ns,
            user=None,
            turn=0,
            think_ns=0,
            prompt=self._prompt(scope, row, length, tally.replayed),
            max_tokens=output,
            phase=scope.phase,
        )

    def _prompt(self, scope: Scope, row: TraceRow, length: int, local: int) -> Prompt:
        if self.format != "mooncake":
            return scope.prompt(np.empty(0, np.int64), length, local)
        words = length - scope.prompts.special_tokens
        room = MOONCAKE_BLOCK_TOKENS - scope.prompts.special_tokens_before  # in the first block
        parts = []
        for hash_id in row.hash_ids:
            parts.append(scope.contents.block(min(words, room), hash_id))
            words -= min(words, room)
            room = MOONCAKE_BLOCK_TOKENS
            if not words:
                break
        return scope.prompts.prompt(np.concatenate(parts))
