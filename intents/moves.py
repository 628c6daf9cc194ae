"""The change of layout that a broken intent asks of a running pipeline.

A stage that runs where an intent forbids it has to leave. `needed` says where to, in the words of the guard that the
head will ask (`intents.pipeline_guard`): a node is allowed if the pipeline's prompts may be there, and one stage may
follow another one if they may take the way between the two nodes. Which layout comes of that, says
`intents.relocation`. The guard judges a pipeline as a whole, and so is it here: what one stage must not do, none may.

The layout is asked for as `dev.midstream.reconfiguration.requested`. Its source and id follow from what is broken and
from the layout to leave, so that whoever finds the same, asks for the same. All KV is computed again: state that lies
on a node which must not have it may not be carried over from there either.

A node can say how many layers it has room for: label `midstream.dev/layers`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

from intents.errors import InventoryError
from intents.live_midstream import METHOD
from intents.pipeline_guard import PipelineGuard
from intents.proof.checker import check
from intents.proof.closing import workloads_to_evict
from intents.proof.transfer import Transfer
from intents.relocation import relocate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from intents.live_midstream import RunningPipeline
    from intents.model.intent import PrivacyIntent
    from intents.model.inventory import Inventory
    from intents.proof.observed import Observed
    from intents.proof.report import Check, Report

REQUESTED = "dev.midstream.reconfiguration.requested"
ROOM = "midstream.dev/layers"
_REASON_CHARACTERS = 500


@dataclass(frozen=True, slots=True)
class Broken:
    """That stages of a pipeline run where they must not.

    Attributes:
        pipeline: Its name.
        intents: That forbid it, by name.
        reason: Why, in words.
        nodes: That must be left.
    """

    pipeline: str
    intents: tuple[str, ...]
    reason: str
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Move:
    """A change of layout that mends it.

    Attributes:
        broken: What it mends.
        before: The layout to leave.
        after: The layout to have.
        violation: Tells violations apart; the same for whoever finds this one.
        attempt: Counts from 1; a request that was aborted is not made again, but a new one.
    """

    broken: Broken
    before: str
    after: str
    violation: str
    attempt: int = 1

    @property
    def source(self) -> str:
        """Of the event."""
        return f"/midstream/intents/{self.broken.pipeline}"

    @property
    def id(self) -> str:
        """Of the event; names the intent, as the head's journal does then."""
        return f"{self.broken.intents[0]}.{self.violation}.{self.attempt}"

    @property
    def key(self) -> str:
        """What the head knows the request by: as the key of an event with this source and id."""
        return f"{self.source}#{self.id}"

    @property
    def data(self) -> dict[str, str]:
        """Of the event."""
        return {"pipeline": self.broken.pipeline, "layers": self.after, "method": METHOD}

    @property
    def extensions(self) -> dict[str, str]:
        """Of the event: why it was sent, for people."""
        plain = self.broken.reason.encode("ascii", "replace").decode()
        reason = "".join(each if each.isprintable() else " " for each in plain)[:_REASON_CHARACTERS]
        return {"intent": ",".join(self.broken.intents)[:_REASON_CHARACTERS], "reason": reason}


@dataclass(frozen=True, slots=True)
class Stuck:
    """That no change mends it, and why."""

    broken: Broken
    why: str


def needed(observed: Observed, intents: Sequence[PrivacyIntent], running: RunningPipeline) -> Move | Stuck | None:
    """Return what a pipeline needs so that its stages run where they may; None: they do.

    Args:
        observed: What runs and what is installed, with the pipeline's stages in its inventory.
        intents: All that are active.
        running: The pipeline.

    Raises:
        InventoryError: the room of a node is no number of layers.
    """
    report = check(intents, observed) if intents else None
    forbidden = report and [each for each in report.failures if stages_of(running, [each])]
    if not forbidden and not running.stopped:
        return None
    guard = PipelineGuard(observed.inventory, intents)

    def judged(*nodes: str) -> Report:
        ways = [Transfer(*pair) for pair in pairwise(nodes) if pair[0] != pair[1]]
        chosen = tuple(dict.fromkeys(nodes))
        return guard.judge(running.name, (), chosen, ways, flows=observed.flows, state=("prompts",))

    failed = forbidden or judged(*running.nodes).failures
    if not failed:
        return None  # its head will hear so in a moment
    nodes = sorted(running.there | set(running.nodes))
    allowed = {node for node in nodes if judged(node).holds}
    broken = _broken(running, failed, allowed)
    if not running.awake:
        return Stuck(broken, "it sleeps; a change would wake it where it must not run")
    joined = cache(lambda source, target: judged(source, target).holds)
    room = _room(observed.inventory, nodes)
    tried = (relocate(running.stages, some, room=room, joined=joined) for some in _parts(running, allowed))
    layouts = [each for each in tried if each is not None and each != running.stages]
    if not layouts:
        return Stuck(broken, _why_nowhere(nodes, allowed, judged))
    wholes = ((layout, judged(*(each.node for each in layout))) for layout in layouts)
    after, whole = next((each for each in wholes if each[1].holds), (layouts[0], None))
    before, wanted = running.written(running.stages), running.written(after)
    if whole is None:
        why = judged(*(each.node for each in after)).failures[0].reason
        return Stuck(broken, f"{wanted} is not allowed either: {why}")
    # The version counts the pipeline's layouts too.
    said = (running.name, running.boot, observed.inventory.version, before, wanted, *broken.intents)
    return Move(broken, before, wanted, hashlib.sha256("\n".join(said).encode()).hexdigest()[:16])


def stages_of(running: RunningPipeline, checks: Sequence[Check]) -> list[str]:
    """Return the stages of a pipeline that run where, by these failed checks, they must not."""
    return workloads_to_evict(checks, [f"{running.name}-stage-{index}" for index in range(len(running.nodes))])


def _parts(running: RunningPipeline, allowed: set[str]) -> Iterator[set[str]]:
    """Yield the nodes to do with: all that are allowed, or fewer where these are allowed, but not with each other."""
    if not allowed.issuperset(running.nodes):
        yield allowed
        return
    used = sorted(set(running.nodes))
    yield from (allowed - {node} for node in used)
    yield from ({node} for node in sorted(allowed, key=lambda node: (node not in used, node)))


def _broken(running: RunningPipeline, failed: Sequence[Check], allowed: set[str]) -> Broken:
    return Broken(
        running.name,
        tuple(dict.fromkeys(each.intent for each in failed)),
        "; ".join(dict.fromkeys(f"{each.subject}: {each.reason}" for each in failed)),
        tuple(dict.fromkeys(node for node in running.nodes if node not in allowed)),
    )


def _room(inventory: Inventory, nodes: Sequence[str]) -> dict[str, int]:
    room = {}
    for name in nodes:
        text = inventory.node[name].labels.get(ROOM) if name in inventory.node else None
        if text is None:
            continue
        if not (text.isascii() and text.isdigit()):
            raise InventoryError(f"node {name}: its label {ROOM} is {text!r}, but must be a number of layers")
        room[name] = int(text)
    return room


def _why_nowhere(nodes: Sequence[str], allowed: set[str], judged: Callable[..., Report]) -> str:
    if not allowed:
        return f"no node that the head has may serve it: {judged(nodes[0]).failures[0].reason}"
    free = ", ".join(sorted(allowed))
    return f"of the nodes that may serve it ({free}), none has room for the layers and an allowed way to the others"
