"""What a soak is asked to do: how many kills, of what, under which load."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from loadgen.benchmarks.client import StreamRequest
from loadgen.benchmarks.migrate.options import METHODS, NODES, MigrateOptions
from loadgen.benchmarks.soak.schedule import DECK, KILLING, Kind, Setting, layers_by_node
from loadgen.errors import OptionsError

_PROMPT_SHARES = (1.0, 0.02, 0.3, 0.08)  # of the longest prompt
_FIRST_SEED, _TEMPERATURE = 1000, 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class SoakOptions(MigrateOptions):
    """Options of the soak: two node runtimes, clients that never stop, and a schedule of disturbances.

    Attributes:
        kills: Kills (and cuts of the link) after which it ends.
        seed: Of the schedule and of the clients' choice of requests.
        deck: How often each kind of disturbance is in the deck.
        recovered_deadline_s: Seconds in which the pipeline must serve again after a kill while a node is there.
        idle_deadline_s: Seconds in which it must be back at its idle point in the end.
    """

    layers_to: str = "8@edge-1,22@edge-2"
    streams: int = 4
    tokens: int = 96
    prompt_tokens: int = 400
    kills: int = 100
    seed: int = 1
    deck: Mapping[Kind, int] = field(default_factory=lambda: DECK)
    recovered_deadline_s: float = 150.0
    idle_deadline_s: float = 60.0

    def __post_init__(self) -> None:
        MigrateOptions.__post_init__(self)
        if self.kills < 1:
            raise OptionsError(f"kills is {self.kills}, but must be at least 1")
        if not any(self.deck.get(kind, 0) > 0 for kind in KILLING):
            raise OptionsError(f"the deck has no card that kills; add one of {', '.join(sorted(KILLING))}")

    def setting(self, cuts: tuple[str, ...]) -> Setting:
        """Return what the schedule has to know; `cuts` are the ways to cut the link."""
        layers = sum(map(len, layers_by_node(self.layers_from).values()))
        return Setting(NODES, layers, METHODS, cuts, self.deck)

    def prompts(self) -> dict[str, str]:
        """Return the prompt of each request by its name: several lengths, each for a greedy and for a seeded request.

        The two of a pair share their prompt, so that prefixes are found in the cache.
        """
        cut = []
        for index, text in enumerate(MigrateOptions.prompts(self).values()):
            words = text.split()
            cut.append(" ".join(words[: max(4, round(len(words) * _PROMPT_SHARES[index % len(_PROMPT_SHARES)]))]))
        return {f"{kind}-{i}": text for i, text in enumerate(cut) for kind in ("greedy", "seeded")}

    def requests(self, tokens: int | None = None) -> list[StreamRequest]:
        """Return the requests that clients choose from: two for each, every third one half as long."""
        return [
            StreamRequest(
                name,
                prompt,
                tokens or (self.tokens // 2 if index % 3 == 2 else self.tokens),
                _TEMPERATURE if name.startswith("seeded") else 0.0,
                _FIRST_SEED + index,
            )
            for index, (name, prompt) in enumerate(self.prompts().items())
        ]

    def choices(self, client: int) -> random.Random:
        """Return what decides which request a client makes next."""
        return random.Random(f"soak {self.seed} client {client}")  # noqa: S311 - reproducible, not secret
