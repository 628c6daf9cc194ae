"""What the migration experiment is asked to do: its link, its load, the methods it compares."""

import re
import sys
from dataclasses import dataclass

from loadgen.benchmarks.reconfigure.options import ReconfigureOptions
from loadgen.errors import OptionsError
from loadgen.link import KINDS, LOOPBACK

METHODS = ("pre_copy", "stop_and_copy", "recompute")
NODES = ("edge-1", "edge-2")
HEAD = "head"

_PLACED = re.compile(rf"[1-9][0-9]*@({'|'.join(NODES)})")


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrateOptions(ReconfigureOptions):
    """Options of the migration experiment: layers move between two node runtimes, no stock vLLM.

    Attributes:
        link: What joins the two machines: a kind of `loadgen.link`.
        methods: How KV is moved, to be compared; see `loadgen.control`.
        check_wire: Also record one pass on the link and search it for plaintext; needs a link of its own.
        rate_limit: Most bytes per second for copying, as `midstream node run` takes it; None for no limit.
        node_command: Command line of `midstream node` before the arguments.
    """

    layers_from: str = "15@edge-1,15@edge-2"
    layers_to: str = "8@edge-1,22@edge-2"
    streams: int = 8
    tokens: int = 1400
    repeat: int = 1
    compare_stock: bool = False
    change_deadline_s: float = 300.0
    link: str = LOOPBACK
    prompt_tokens: int | None = 500
    methods: tuple[str, ...] = METHODS
    check_wire: bool = False
    rate_limit: str | None = None
    node_command: tuple[str, ...] = (sys.executable, "-m", "controller.cli", "node")

    def __post_init__(self) -> None:
        ReconfigureOptions.__post_init__(self)
        for option, text in (("from", self.layers_from), ("to", self.layers_to)):
            wrong = [part for part in text.split(",") if not _PLACED.fullmatch(part)]
            if wrong:
                raise OptionsError(
                    f"--{option} {text!r}: {wrong[0]!r} is not layers on one of the nodes {' and '.join(NODES)}; "
                    f"write, for example, 15@{NODES[0]},15@{NODES[1]}"
                )
        if self.link not in KINDS:
            raise OptionsError(f"link {self.link!r} is none of {', '.join(KINDS)}")
        unknown = [method for method in self.methods if method not in METHODS]
        if unknown or not self.methods or len(set(self.methods)) < len(self.methods):
            raise OptionsError(
                f"methods {','.join(self.methods)!r} are not one or more of {', '.join(METHODS)}, each once"
            )
        if self.check_wire and self.link == LOOPBACK:
            raise OptionsError("the wire can only be checked on a link of its own; add --link 1gbit")

    def methods_in(self, repeat: int) -> tuple[str, ...]:
        """Return the methods in the order of a repeat: each comes first in its turn, so that no place favours one."""
        first = repeat % len(self.methods)
        return self.methods[first:] + self.methods[:first]

    def head_argv(self, port: int, listen: str, state: str) -> list[str]:
        """Return the command line of the head, which nodes reach at `listen`, with its key in the folder `state`."""
        nodes = [argument for node in NODES for argument in ("--node", node)]
        return [*self.midstream_argv(port), *nodes, "--name", HEAD, "--state", state, "--listen", listen]
