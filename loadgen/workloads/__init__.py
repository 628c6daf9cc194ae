"""What to send and when: arrivals, lengths, prompts, sessions and traces, all from one seed.

A `Workload` is what a user writes down (`kinds`). With a seed and a source of prompts (`prompts`) it becomes a `Plan`
(`plan`), which a runner follows:

    workload = parse_workload({"kind": "open", "arrivals": {"kind": "poisson", "rate": 4}, "duration_s": 60,
                               "input_tokens": 512, "output_tokens": {"kind": "uniform", "min": 16, "max": 256}})
    plan = workload.plan(seed=7, prompts=open_prompts(TokenIds(kind="token_ids", vocabulary=49152)))
    for user in plan.users(): ...
"""

from loadgen.workloads.errors import PromptError, TraceError, WorkloadError
from loadgen.workloads.kinds import Workload, parse_workload, workload_schema
from loadgen.workloads.plan import Plan, PlannedRequest, PlannedUser, Prompt, requests_in_order
from loadgen.workloads.prompts import Prompts, PromptSource, Server, TokenIds, TokenIdSource, Tokenizer, open_prompts

__all__ = [
    "Plan",
    "PlannedRequest",
    "PlannedUser",
    "Prompt",
    "PromptError",
    "PromptSource",
    "Prompts",
    "Server",
    "TokenIdSource",
    "TokenIds",
    "Tokenizer",
    "TraceError",
    "Workload",
    "WorkloadError",
    "open_prompts",
    "parse_workload",
    "requests_in_order",
    "workload_schema",
]
