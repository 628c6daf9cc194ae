"""From what the migration experiment saw to one JSON object: pure functions; rules in `..change_figures`.

One object for each method, with the figures that every change of a layout has, and how much slower tokens came while
the change ran than before it in the same pass. A later token has a longer context and takes longer, change or not: so
each token's time is first divided by that of the same token in the quiet pass.

- `itl_ratio`: the median of all streams' tokens that arrived between posting the change and its end, without those
  whose gap overlaps the server's cutover step, over the median of those before the change;
- `tpot_ratio`: for each stream the mean of the same tokens over the mean of those before; the median of all streams
  and repeats. This is what the copying costs while decoding goes on;
- `tpot_ratio_with_cutover`: the same with the gaps of the cutover step. This is what the whole change costs, pause and
  all; for a method that copies nothing while decoding goes on it is the one to read;
- `throughput_dip`: the part of the tokens per second before the change that is missing from posting it to its end.

`pause_ms_at_cutover` takes the gaps that overlap the cutover step. `ttft_ms_during` is of requests begun during the
change, `ttft_ms_quiet` of all requests of the same repeats that the change did not touch. `foreign_cpus_max` is what
processes that are not of the experiment used of the machine meanwhile, in CPUs: above a few tenths, the other figures
are about them too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from loadgen.benchmarks.change_figures import (
    NOT_FULL_LOAD,
    Figures,
    put_changes,
    put_pauses,
    put_rhythm,
    put_tokens,
    rounded,
    uncommitted,
)
from loadgen.benchmarks.disturbance import (
    Repeat,
    cutover_step_pauses,
    first_tokens_ms,
    latency_ratio,
    quiet_p50_ms,
    quiet_ttft_ms,
    token_time_ratios,
)
from loadgen.benchmarks.migrate.options import MigrateOptions
from loadgen.benchmarks.passes import Pass
from loadgen.machine import CpuUse


@dataclass(frozen=True, slots=True)
class Migrations:
    """Everything the experiment saw.

    Attributes:
        options: What was asked for.
        vllm_version: As the head reports it.
        link: Facts about the link.
        references: The quiet pass of each repeat.
        repeats: For each method, its changes in order.
        wire: What was found on the wire; None if nobody looked.
    """

    options: MigrateOptions
    vllm_version: str | None
    link: Mapping[str, Any]
    references: Sequence[Pass]
    repeats: Mapping[str, Sequence[Repeat]]
    wire: Mapping[str, Any] | None


def summarise(seen: Migrations) -> dict[str, Any]:
    """Return the result of an experiment as one JSON object."""
    options = seen.options
    return {
        "vllm_version": seen.vllm_version,
        "options": {
            name: getattr(options, name)
            for name in ("layers_from", "layers_to", "model", "streams", "tokens", "prompt_tokens", "repeat", "link")
        }
        | {"methods": list(options.methods), "server_args": list(options.server_args)},
        "link": dict(seen.link),
        "quiet": _quiet(seen),
        "methods": {method: _method(options, repeats) for method, repeats in seen.repeats.items()},
        "wire": seen.wire,
    }


def _quiet(seen: Migrations) -> dict[str, Any]:
    result, streams = Figures(), seen.options.streams
    prompts = [len(record.prompt_token_ids) for quiet in seen.references for record in quiet.records]
    result.put("prompt_tokens_min", min(prompts))
    result.put("prompt_tokens_max", max(prompts))
    result.boil("itl_ms_p50", (quiet_p50_ms(quiet, streams) for quiet in seen.references), reason=NOT_FULL_LOAD)
    result.boil("ttft_ms_p50", (quiet_ttft_ms(quiet) for quiet in seen.references))
    _put_foreign(result, [quiet.cpus for quiet in seen.references])
    return result.as_dict()


def _method(options: MigrateOptions, repeats: Sequence[Repeat]) -> dict[str, Any]:
    result, committed = Figures(), [r for r in repeats if r.committed]
    put_pauses(result, repeats, options.change_after_tokens, cutover_step_pauses)
    put_changes(result, repeats)
    result.put("aborted", [r.disturbed.report.reason for r in repeats if not r.committed])
    _put_times(result, committed, uncommitted(repeats))
    _put_overhead(result, committed, options.streams, uncommitted(repeats))
    put_rhythm(result, repeats, options.streams)
    put_tokens(result, repeats)
    _put_foreign(result, [r.disturbed.cpus for r in repeats])
    return result.as_dict()


def _put_foreign(result: Figures, uses: Sequence[CpuUse | None]) -> None:
    foreign = (None if use is None else use.foreign for use in uses)
    result.boil("foreign_cpus_max", foreign, to_one=max, reason="nobody watched the CPUs")


def _put_times(result: Figures, committed: Sequence[Repeat], reason: str | None) -> None:
    reports = [r.disturbed.report for r in committed]
    totals = [report.total_ms for report in reports if report.total_ms is not None]
    result.put("total_ms_min", min(totals, default=None), reason)
    result.put("total_ms_max", max(totals, default=None), reason)
    steps = {name for report in reports for name in report.steps_ms}
    for name in sorted(steps):
        result.boil(f"{name}_ms", (report.steps_ms.get(name) for report in reports))
    result.put("stop_reasons", [report.stop_reason for report in reports])


def _put_overhead(result: Figures, committed: Sequence[Repeat], streams: int, reason: str | None) -> None:
    why = reason or NOT_FULL_LOAD
    result.boil("itl_ratio", (latency_ratio(r, streams) for r in committed), reason=why)
    for name, cutover in (("tpot_ratio", False), ("tpot_ratio_with_cutover", True)):
        each = [token_time_ratios(r, streams, cutover=cutover) for r in committed]
        ratios = [ratio for one in each for ratio in one]
        result.put(name, median(ratios) if ratios else None, why)
        result.spread[name] = {"each": [rounded(sorted(one)) for one in each]}
    for name, during in (("ttft_ms_during", True), ("ttft_ms_quiet", False)):
        waits = [wait for r in committed for wait in first_tokens_ms(r, during=during)]
        result.put(name, median(waits) if waits else None, reason or "no request began during a change")
