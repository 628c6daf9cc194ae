"""The load of a run: its prompts, what warms the server up, and the runner that sends it."""

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from loadgen.errors import MeasurementError
from loadgen.experiments.schema import Settings
from loadgen.experiments.servers import RunningTarget, Say
from loadgen.experiments.targets import EndpointTarget, MockTarget
from loadgen.results.columns import FINISHED, RequestRow
from loadgen.streaming.runner import Runner
from loadgen.workloads.closed_loop import ClosedLoop
from loadgen.workloads.distributions import Fixed
from loadgen.workloads.errors import PromptError
from loadgen.workloads.plan import Plan
from loadgen.workloads.prompts import Prompts, PromptSource, Server, TokenIds, open_prompts

_OTHER_SEED = 1_000_003  # so that what warms up is not found in a prefix cache by what is measured
_MOCK_VOCABULARY = 49_152
_USUAL = TokenIds(kind="token_ids", vocabulary=1000)
_HOW_TO_GIVE = "A chat endpoint takes no token ids: --set prompts='{kind: tokenizer, tokenizer: FOLDER-OR-HUB-ID}'"


async def prompt_source(settings: Settings, target: RunningTarget, say: Say) -> PromptSource:
    """Return where prompts come from: as the file says, or from the server's own tokenizer.

    A server without a tokenizer that can be asked gets token ids that every usual vocabulary has, and the run says so
    (`prompts` of its target). A chat endpoint takes none: it needs a tokenizer.

    Raises:
        PromptError: no prompts of exact length can be had.
    """
    wanted: Prompts = settings.prompts or _usual_prompts(target)
    if target.prompts is None or target.prompts[0] != wanted:
        headers = {}
        key_from = target.wanted.api_key_env if isinstance(target.wanted, EndpointTarget) else None
        if key_from is not None:
            headers["Authorization"] = f"Bearer {os.environ.get(key_from, '')}"
        try:
            source = await _on_a_new_thread(
                lambda: open_prompts(wanted, server_url=target.base_url, model=target.model, headers=headers)
            )
        except PromptError as error:
            if settings.prompts is not None:
                raise
            if settings.client.endpoint == "chat":
                raise PromptError(f"{error} {_HOW_TO_GIVE}") from error
            say(f"{target.base_url} has no tokenizer to ask; prompts are token ids below {_USUAL.vocabulary}")
            source = open_prompts(_USUAL)
            target.facts["prompts"] = f"token ids from {_USUAL.first_id} to {_USUAL.vocabulary - 1}"
        target.prompts = (wanted, source)
    return target.prompts[1]


async def _on_a_new_thread(work: Callable[[], PromptSource]) -> PromptSource:
    """Run what blocks on a thread made now: one of a pool may be in another network namespace than the target."""
    with ThreadPoolExecutor(max_workers=1) as fresh:
        return await asyncio.get_running_loop().run_in_executor(fresh, work)


def _usual_prompts(target: RunningTarget) -> Prompts:
    if isinstance(target.wanted, MockTarget):
        return TokenIds(kind="token_ids", vocabulary=_MOCK_VOCABULARY)
    return Server(kind="server")


def runner(settings: Settings, target: RunningTarget, plan: Plan) -> Runner:
    """Return what sends a plan to a target."""
    api_key_env = target.wanted.api_key_env if isinstance(target.wanted, EndpointTarget) else None
    server = settings.client.target(target.base_url, target.model, api_key_env)
    return Runner(plan, server, settings.client.limits())


async def warm_up(settings: Settings, target: RunningTarget, prompts: PromptSource, seed: int) -> None:
    """Send what is not measured.

    Raises:
        MeasurementError: an answer broke: there is no point in measuring.
    """
    wanted = settings.warm_up
    if not wanted.requests:
        return
    workload = ClosedLoop(
        kind="closed",
        users=wanted.requests,
        requests=wanted.requests,
        input_tokens=Fixed(value=max(wanted.prompt_tokens, prompts.special_tokens + 1)),
        output_tokens=Fixed(value=wanted.max_tokens),
    )
    ended = _Ended()
    async with runner(settings, target, workload.plan(seed + _OTHER_SEED, prompts)) as sending:
        await sending.run(ended)
    broken = next((row for row in ended.rows if row.outcome != FINISHED), None)
    if broken is not None:
        raise MeasurementError(
            f"the warm-up was not answered: {broken.outcome}: {broken.detail}; warm_up: {{requests: 0}} (or --set "
            "warm_up.requests=0) measures without"
        )


class _Ended:
    """Keeps how requests ended, and nothing else."""

    def __init__(self) -> None:
        self.rows: list[RequestRow] = []

    def request(self, row: RequestRow) -> None:
        """Keep a request."""
        self.rows.append(row)

    def tokens(
        self,
        request: int,
        first_index: int,
        at_ns: Sequence[int],
        chunk: Sequence[int],
        ids: Sequence[int] | None = None,
    ) -> None:
        """Keep no tokens."""

    def sample(self, name: str, at_ns: int, value: float) -> None:
        """Keep no samples."""
