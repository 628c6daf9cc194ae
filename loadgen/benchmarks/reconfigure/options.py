"""What the reconfiguration experiment is asked to do: its load, its servers, its limits."""

import asyncio
import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from loadgen.benchmarks.client import StreamRequest
from loadgen.errors import OptionsError, ServerError

_SUBJECTS = ("Paris", "salt", "bicycles", "the Moon", "tea", "bridges", "maps", "glass", "clocks", "ships")
_SAMPLING_TEMPERATURE = 0.8
_FIRST_SEED = 1000
# Common words, most of which are one token in any vocabulary.
_TEXT = (
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work government number night point home water room mother "
    "area money story fact month lot right study book eye job word business issue side kind head house service friend "
    "father power hour game line end member law car city community name president team minute idea body information"
)
_WINDOW_TOKENS = 1900  # of the 2048 that the server is started with: words are only about a token each
_LEAST_PROMPT_TOKENS = 8
_MIN_TOKENS = 48  # a third of the tokens must give a rhythm before the change, and some must be left after it

# One source of truth for both sides: whatever differs between the servers must not be a flag.
DEFAULT_SERVER_ARGS = ("--dtype", "float32", "--enforce-eager", "--max-model-len", "2048")
DEFAULT_ENV = MappingProxyType(
    {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
)
# What `vllm serve` runs for one API server. The command itself asks for the version of a distribution called "vllm" and
# fails where the engine was installed as vllm-cpu.
STOCK_COMMAND = (sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconfigureOptions:
    """Options of the reconfiguration experiment.

    Attributes:
        layers_from, layers_to: Layers per stage before and after the change, for example "15,15" and "8,12,10".
        model: Hub id or folder; None lets the server choose its default.
        streams: Concurrent closed-loop clients; every second one samples, the others decode greedily.
        tokens: Tokens per request.
        prompt_tokens: Length of the prompts, roughly; the result says what it was. None: a sentence each.
        repeat: How often the change is measured.
        compare_stock: Also run stock vLLM, for the ratio of latencies and the downtime of a restart.
        server_args: vLLM flags given to both servers.
        env: Environment added to both servers.
        log_dir: Folder for the servers' logs; None makes a temporary one, named in the result.
        start_deadline_s, change_deadline_s: Seconds for a server to become healthy, and for a change to end.
        settle_s: Seconds without load before each pass. Stock vLLM's threads go on spinning when its last answer is
            out, and what is measured right after them takes two to three times as long to its first token.
        midstream_command, stock_command: Command lines before the arguments; tests put a mock server here.
        model_folder_command: Prints the folder of a model on its last line, for stock vLLM.
    """

    layers_from: str = "15,15"
    layers_to: str = "8,12,10"
    model: str | None = None
    streams: int = 4
    tokens: int = 128
    prompt_tokens: int | None = None
    repeat: int = 3
    compare_stock: bool = True
    server_args: tuple[str, ...] = DEFAULT_SERVER_ARGS
    env: Mapping[str, str] = field(default_factory=lambda: DEFAULT_ENV)
    log_dir: Path | None = None
    start_deadline_s: float = 300.0
    change_deadline_s: float = 120.0
    settle_s: float = 3.0
    midstream_command: tuple[str, ...] = (sys.executable, "-m", "controller.cli", "serve")
    stock_command: tuple[str, ...] = STOCK_COMMAND
    model_folder_command: tuple[str, ...] = (sys.executable, "-m", "runtime.model")

    def __post_init__(self) -> None:
        for name, value, least in (
            ("streams", self.streams, 1),
            ("tokens", self.tokens, _MIN_TOKENS),
            ("repeat", self.repeat, 1),
        ):
            if value < least:
                raise OptionsError(f"{name} is {value}, but must be at least {least}")
        least, most = _LEAST_PROMPT_TOKENS, _WINDOW_TOKENS - self.tokens
        if self.prompt_tokens is not None and not least <= self.prompt_tokens <= most:
            raise OptionsError(
                f"prompts of {self.prompt_tokens} tokens: must be at least {least}, and with the "
                f"{self.tokens} tokens of an answer at most {_WINDOW_TOKENS}"
            )
        if self.layers_from == self.layers_to:
            raise OptionsError(f"nothing to change: both layouts are {self.layers_from!r}; give another --to")

    @property
    def change_after_tokens(self) -> int:
        """Tokens, over all streams, after which the change is posted: a third of the first requests' tokens."""
        return self.streams * self.tokens // 3

    @property
    def quiet_tail_tokens(self) -> int:
        """Tokens, over all streams, that must arrive after the change, to see the new layout's rhythm."""
        return self.streams * max(16, self.tokens // 4)

    def prompts(self) -> dict[str, str]:
        """Return the prompt of each stream by its name; each is another text, so that they share no KV."""
        words, length = _TEXT.split(), self.prompt_tokens
        return {
            f"stream-{index}": f"Tell me about the history of {_SUBJECTS[index % len(_SUBJECTS)]}, chapter {index + 1}."
            if length is None
            else " ".join(random.Random(index).choices(words, k=length))  # noqa: S311 - a text
            for index in range(self.streams)
        }

    def requests(self, tokens: int | None = None) -> list[StreamRequest]:
        """Return the request of each client, with `tokens` tokens instead of the option's if given."""
        return [
            StreamRequest(
                name=name,
                prompt=prompt,
                max_tokens=tokens or self.tokens,
                temperature=_SAMPLING_TEMPERATURE if index % 2 else 0.0,
                seed=_FIRST_SEED + index,
            )
            for index, (name, prompt) in enumerate(self.prompts().items())
        ]

    def midstream_argv(self, port: int) -> list[str]:
        """Return the command line of the Midstream server."""
        model = ["--model", self.model] if self.model else []
        layers = ["--layers", self.layers_from]
        return [*self.midstream_command, *model, *layers, *_listen(port), *self.server_args]

    def stock_argv(self, port: int, model: str) -> list[str]:
        """Return the command line of stock vLLM serving `model`, a folder or a hub id."""
        return [*self.stock_command, "--model", model, *_listen(port), *self.server_args]


def _listen(port: int) -> list[str]:
    return ["--host", "127.0.0.1", "--port", str(port)]


async def default_model_folder(options: ReconfigureOptions) -> str:
    """Return the folder of the default model, made ready if it is not."""
    process = await asyncio.create_subprocess_exec(
        *options.model_folder_command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    folder = _last_line(out)
    if process.returncode != 0 or not folder:
        command = " ".join(options.model_folder_command)
        raise ServerError(f"{command} (status {process.returncode}) names no model folder: {err.decode()[-500:]}")
    return folder


def _last_line(output: bytes) -> str:
    return next((line for line in reversed(output.decode().splitlines()) if line.strip()), "")
