"""The nodes that a pipeline can use: those it was given, or, for development, any name as a node of this host.

A node on another host that is lost is *awaited* for `grace_s` seconds first: its runtime may have been restarted, with
weights and KV still there (`runtime.warm.adoption`), or only the link was away. If it serves layers, whoever repairs
the pipeline (`placed`) asks it to go on with them::

    lost --> awaited --- resume: it has all of it --------------------> there again, nothing was lost
                     --- it refuses, or the time is over -------------> its KV is gone: placed elsewhere, opened anew

Not awaited is a node that was resumed within the last seconds: what ends it would end it again. Nor is one resumed that
was there all the time while another node could not reach it.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from runtime.engine.placing import NowhereAllowed, place
from runtime.layout import LOCAL_NODE
from runtime.migration.errors import ChangeForbidden, ChangeRefused, GuardSilent
from runtime.migration.stop_rule import CopyRound
from runtime.warm.node import LocalNode, Node, NodeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from runtime.layout import Layout
    from runtime.migration.guard import Permission
    from runtime.migration.journal import Journal
    from runtime.warm.kv_pool import KVPoolShape
    from runtime.warm.model_fetch import ModelOrder
    from runtime.warm.node import KVCopy
    from runtime.warm.remote_node import RemoteNode

OPEN_S = 600.0
REACH_S = 60.0
_TAKE_BACK_S = 2.0
_RESUME_S = 30.0  # for a node runtime to end stages and erase what is not wanted
_STEADY_S = 10.0
_COME_BACK_S = 120.0
_LOOK_AGAIN_S = 0.2
_ASK_AGAIN_S = 1.0


class Nodes:
    """The nodes of one pipeline. Thread-safe after `open`.

    Args:
        remote: nodes on other hosts.
        make_local: makes a node of this host; None when the pipeline has no zygote here.
        journal: is told of nodes that come and go.
        permission: what a node needs before it gets anything; None when no intents bound this pipeline.
        grace_s: how long a lost node is awaited, in seconds.

    """

    def __init__(
        self,
        remote: Iterable[RemoteNode],
        make_local: Callable[[str], LocalNode] | None,
        journal: Journal,
        permission: Permission | None = None,
        grace_s: float = 0.0,
    ) -> None:
        self._grace_s = grace_s
        self._awaited: dict[str, float] = {}  # until when, by name
        self._cut_off: set[str] = set()  # of the awaited: those that this host has lost the link to
        self._resumed_at: dict[str, float] = {}
        self._kv_gone: dict[str, int] = {}  # of which nodes, by the number of the loss
        self._losses = 0
        self._remote = {node.name: node for node in remote}
        self._make_local, self._journal, self._permission = make_local, journal, permission
        self._nodes: dict[str, Node] = dict(self._remote)
        self._lost: dict[str, str] = {}  # reasons by name
        self._kept_out: dict[str, type[ChangeRefused]] = {}  # of these: not allowed, as forbidden or for want of a word
        self._shape: KVPoolShape | None = None
        self._engine: tuple[bytes, ModelOrder | None] = b"", None
        self._closing = threading.Event()
        self._lock = threading.Lock()

    def open(self, describe: Callable[[frozenset[str]], tuple[bytes, ModelOrder | None]]) -> None:
        """Have the pipeline hosted by all remote nodes, at once; `describe` says what the zygotes of these need.

        Waits some time for nodes that are not there yet. From then on, a node that is lost is taken back as soon as it
        can be reached again. A node that the intents forbid gets nothing; it counts as lost until it is allowed.

        Raises:
            NodeError: one of them cannot host it.
            ChannelError: one of them cannot be reached.

        """
        if not self._remote:
            return
        self._engine = describe(frozenset(self._remote))
        with ThreadPoolExecutor(len(self._remote)) as threads:
            allowed = [
                node
                for node, refusal in zip(
                    self._remote.values(), threads.map(self._refusal_of, self._remote), strict=True
                )
                if refusal is None
            ]
            list(threads.map(lambda node: node.wait_reachable(REACH_S), allowed))
            list(threads.map(self._open, allowed))
        threading.Thread(target=self._take_back, name="lost-nodes", daemon=True).start()

    def _refusal_of(self, name: str) -> str | None:
        """Keep a node out that is not allowed to have anything; returns why."""
        if self._permission is None:
            return None
        try:
            self._permission.require_node(name)
        except (ChangeForbidden, GuardSilent) as error:
            if self._lost.get(name) != str(error):
                self._journal.tell("pipeline", "node kept out", node=name, reason=str(error))
            self._remote[name].lost = self._lost[name] = str(error)
            self._kept_out[name] = type(error)
            return str(error)
        if self._kept_out.pop(name, None) is not None:
            self._lost[name] = "it is allowed again and not open yet"
        return None

    def _open(self, node: RemoteNode) -> None:
        facts = node.open(list(self._remote), *self._engine, OPEN_S)
        self._journal.tell("pipeline", "node ready", node=node.name, weights_were_warm=facts["was_warm"])

    def _take_back(self) -> None:
        """Open lost nodes again as soon as that can be done."""
        told: dict[str, str] = {}
        while not self._closing.wait(_TAKE_BACK_S):
            for name in [name for name in list(self._lost) if name in self._remote]:
                if self._is_awaited(name):
                    continue
                node = self._remote[name]
                if self._refusal_of(name) is not None:
                    continue
                try:
                    node.wait_reachable(0.0)
                    node.lost = None
                    self._open(node)
                    if self._shape is not None:
                        node.reserve(self._shape, 0)
                except Exception as error:  # noqa: BLE001 - whatever it is, the node stays lost
                    node.lost = str(error)
                    if told.get(name) != str(error):
                        told[name] = str(error)
                        self._journal.tell("pipeline", "node still lost", node=name, reason=str(error))
                    continue
                told.pop(name, None)
                with self._lock:
                    if node.lost is None:  # not lost again meanwhile
                        del self._lost[name]

    def close(self) -> None:
        """Take nobody back any more; let go of the pipeline on the nodes that are there."""
        self._closing.set()
        for name in self.names():
            if name in self._remote:
                self._remote[name].close()

    def names(self) -> list[str]:
        """Return the nodes that are known and there."""
        return [name for name in list(self._nodes) if name not in self._lost]

    def warm_bytes(self) -> dict[str, int]:
        """Return how much memory of KV and weights each node of this host holds, as far as it can be told here."""
        return {name: node.warm_bytes() for name, node in list(self._nodes.items()) if isinstance(node, LocalNode)}

    def lost_names(self) -> frozenset[str]:
        """Return the nodes that are lost now, without those that the intents keep out."""
        return frozenset(self._lost.keys() - self._kept_out)

    def get(self, name: str) -> Node:
        """Return a node.

        Raises:
            NodeError: there is no such node, or it is lost.

        """
        if name in self._lost:
            raise NodeError(f"node {name} is lost: {self._lost[name]}")
        node = self._nodes.get(name)
        if node is None:
            if self._make_local is None or (self._remote and name != LOCAL_NODE):
                raise NodeError(f"there is no node {name!r}; known are: {', '.join(self.names())}")
            node = self._nodes[name] = self._make_local(name)
            if self._shape is not None:
                node.reserve(self._shape, 0)
        return node

    def check(self, layout: Layout) -> None:
        """Check that all nodes of a layout are known, there and not kept out; raises ChangeRefused."""
        for name in layout.nodes:
            if (refusal := self._kept_out.get(name)) is not None:
                raise refusal(f"layers {layout}: {self._lost[name]}")
            try:
                self.get(name)
            except NodeError as error:
                raise ChangeRefused(f"layers {layout}: {error}") from error

    def reserve(self, shape: KVPoolShape, layouts: Sequence[Layout]) -> None:
        """Make room on every node for the layers it has in any of `layouts`.

        Raises:
            ChangeRefused: a node is unknown, lost, or has no room; the message says how much it lacks.

        """
        self._shape = shape
        held: Counter[str] = Counter()
        for layer in range(shape.layers):
            held.update({layout.node_of(layer) for layout in layouts})
        for name in dict.fromkeys([*held, *self.names()]):
            try:
                self.get(name).reserve(shape, held[name])
            except Exception as error:
                if name in held:
                    raise ChangeRefused(f"node {name}: {error}") from error

    def copy(self, name: str, source: Layout, target: Layout) -> Migration | None:
        """Begin to copy the layers that change their node; None when none does."""
        pairs: dict[tuple[str, str], list[int]] = {}
        for layer in source.moved_layers(target):
            pairs.setdefault((source.node_of(layer), target.node_of(layer)), []).append(layer)
        if not pairs:
            return None
        with self._lock:
            for new in target.nodes - source.nodes:  # had nothing to lose
                self._kv_gone.pop(new, None)
        migration = Migration(name)
        try:
            for (here, there), layers in pairs.items():
                migration.add(self.get(here), self.get(there), layers)
        except Exception:
            migration.end()
            raise
        return migration

    def each(self, work: Callable[[Node], None]) -> None:
        """Do something on every node that is there, side by side; raises what the first raises."""
        nodes = [self._nodes[name] for name in self.names()]
        with ThreadPoolExecutor(len(nodes)) as threads:
            list(threads.map(work, nodes))

    def lose(self, name: str, reason: str, *, cut_off: bool = True) -> bool:
        """Take note that a node is gone; False when that is known, or it is none of ours.

        `cut_off`: this host has lost the link to it; else another node has.
        """
        if name not in self._nodes:
            return False
        with self._lock:
            if name in self._remote:
                self._remote[name].lost = reason  # also while it is being taken back
            known = name in self._lost
            self._lost[name] = reason
            if cut_off:
                self._cut_off.add(name)
            if known:
                return False
            now = time.monotonic()
            steady = now - self._resumed_at.get(name, -math.inf) >= _STEADY_S
            if name in self._remote and self._shape is not None and self._grace_s > 0 and steady:
                self._awaited[name] = now + self._grace_s
            else:
                self._note_kv_gone(name)
        return True

    def _note_kv_gone(self, name: str) -> None:
        self._losses += 1
        self._kv_gone[name] = self._losses

    def kv_gone(self) -> dict[str, int]:
        """Return the nodes that have lost the KV of what they serve since it was computed, with a number each."""
        with self._lock:
            return dict(self._kv_gone)

    def kv_renewed(self, gone: Mapping[str, int]) -> None:
        """Take note that all KV is computed again that was gone when `kv_gone` returned this."""
        with self._lock:
            self._kv_gone = {name: loss for name, loss in self._kv_gone.items() if gone.get(name) != loss}

    def _is_awaited(self, name: str) -> bool:
        """Whether a lost node may still come back with what it had; takes note when its time is over."""
        with self._lock:
            until = self._awaited.get(name)
        if until is None:
            return False
        if time.monotonic() < until:
            return True
        self._forsake(name, f"it was not back within {self._grace_s:g} s")
        return False

    def _forsake(self, name: str, reason: str) -> None:
        """Await a node no longer: what it had is taken for lost."""
        with self._lock:
            if self._awaited.pop(name, None) is None:
                return
            self._cut_off.discard(name)
            self._note_kv_gone(name)
        self._journal.tell("pipeline", "node not resumed", node=name, reason=reason)

    def _resume_lost(self, layout: Layout) -> None:
        """Let awaited nodes of a layout go on with what they have; returns when none is awaited any more."""
        asked: set[str] = set()
        while (awaited := {name for name in layout.nodes if self._is_awaited(name)}) and not self._closing.is_set():
            for name in awaited - asked:  # the next one may be lost while the first is awaited
                layers = [layer for layer in range(layout.total_layers) if layout.node_of(layer) == name]
                threading.Thread(target=self._resume, args=(name, layers), name=f"resume-{name}", daemon=True).start()
            asked |= awaited
            # Not for the threads: one may be waiting for a machine that does not answer.
            self._closing.wait(_LOOK_AGAIN_S)

    def _resume(self, name: str, layers: list[int]) -> None:
        """Ask a node again and again to go on with some layers, as long as it is awaited."""
        node, shape = self._remote[name], self._shape
        while shape is not None and not self._closing.is_set() and self._is_awaited(name):
            clock = time.perf_counter()
            if (refusal := self._refusal_of(name)) is not None:
                if self._kept_out.get(name) is ChangeForbidden:
                    self._forsake(name, refusal)
                    return
                self._closing.wait(_ASK_AGAIN_S)  # a guard that starts at the same time
                continue
            try:
                node.wait_reachable(0.0)
                node.lost = None
                facts = node.resume(list(self._remote), *self._engine, shape, layers, _RESUME_S)
            except Exception as error:  # noqa: BLE001 - not there yet, or gone again
                node.lost = str(error)
                self._closing.wait(_LOOK_AGAIN_S)
                continue
            if facts["refused"] is not None:
                node.lost = facts["refused"]
                self._forsake(name, facts["refused"])
                return
            with self._lock:
                there_all_the_time = not facts["restarted"] and name not in self._cut_off
                back = node.lost is None and not there_all_the_time and self._awaited.pop(name, None) is not None
                if back:
                    self._cut_off.discard(name)
                    self._resumed_at[name] = time.monotonic()
                    del self._lost[name]
            if back:
                ms = round(1e3 * (time.perf_counter() - clock), 1)
                kept = {"restarted": facts["restarted"], "kept_tokens": facts["kept_tokens"]}
                self._journal.tell("pipeline", "node resumed", node=name, **kept, ms=ms)
                return
            if there_all_the_time:
                self._forsake(name, "it is there, but another node does not reach it")

    def placed(self, layout: Layout) -> Layout:
        """Return a layout like `layout` that needs no lost node and none that the intents forbid.

        Lost nodes that may come back with what they had are awaited first. Where it needs another, its layers go to
        the stages beside it; else they are shared by the nodes that are left. Nothing is carried over into that layout.
        Waits for some time when there is no such layout for want of nodes, and without end when none is allowed.

        Raises:
            NodeError: there was none in time, or this is closed.

        """
        self._resume_lost(layout)
        deadline = time.monotonic() + _COME_BACK_S
        told = ""
        while True:
            try:
                return place(layout, dict(self._lost), self.names(), self._refusal)
            except (NodeError, GuardSilent) as error:
                reason = str(error)
                if isinstance(error, NowhereAllowed | GuardSilent) or self._kept_out:
                    deadline = time.monotonic() + _COME_BACK_S
            if reason != told:
                told = reason
                self._journal.tell("pipeline", "no place", reason=reason)
            pause_s = _LOOK_AGAIN_S if self._permission is None else _ASK_AGAIN_S
            if self._closing.wait(pause_s) or time.monotonic() > deadline:
                raise NodeError(reason)

    def _refusal(self, layout: Layout) -> str | None:
        """Return why the intents forbid a layout; raises GuardSilent."""
        if self._permission is None:
            return None
        try:
            self._permission.require(None, layout)
        except ChangeForbidden as error:
            return str(error)
        return None

    def scrub_left(self, before: Layout, after: Layout) -> list[str]:
        """Erase what nodes hold that `after` does without; returns what could not be done."""
        problems: list[str] = []
        for name in before.nodes - after.nodes - self._lost.keys():
            layers = [layer for layer in range(before.total_layers) if before.node_of(layer) == name]
            problems += _tried(partial(self._nodes[name].scrub, layers))
        return problems


@dataclass(frozen=True, slots=True)
class _Leg:
    """The copying of some layers from one node to another, in the name of `name`."""

    name: str
    source: Node
    target: Node
    layers: list[int]
    copy: KVCopy


class Migration:
    """The copies of one change, between any pairs of nodes, side by side."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._legs: list[_Leg] = []
        self._threads = ThreadPoolExecutor(8, "copy")

    def add(self, source: Node, target: Node, layers: list[int]) -> None:
        """Begin to copy some layers."""
        name = f"{self._name}.{len(self._legs)}"
        target.allow_copy(name, source.host)
        try:
            self._legs.append(_Leg(name, source, target, layers, source.copy_to(target, name, layers)))
        except Exception:
            _tried(partial(target.forget_copy, name))
            raise

    def round(self) -> CopyRound:
        """Copy everything that is stale now, once; say how much was sent and how much is stale again."""
        started = time.perf_counter()
        rounds = list(self._threads.map(lambda leg: leg.copy.round(), self._legs))
        return CopyRound(
            sum(copied.sent_bytes for copied in rounds),
            time.perf_counter() - started,
            sum(copied.stale_bytes for copied in rounds),
        )

    def pace(self, bytes_per_second: float | None) -> None:
        """Copy at most so many bytes per second in all from now on, also in a round under way; None for no limit."""
        for leg in self._legs:
            leg.copy.pace(None if bytes_per_second is None else bytes_per_second / len(self._legs))

    def stale_bytes(self) -> int:
        """Bytes that a round would send now."""
        return sum(leg.copy.stale_bytes() for leg in self._legs)

    def finish(self) -> tuple[int, dict[int, int]]:
        """Copy what is stale, now that nothing writes any more, and compare all sources and targets (I2).

        Returns:
            Bytes copied, and {layer: blocks that differ}.

        """
        sent, differing = 0, dict[int, int]()
        for copied, found in self._threads.map(lambda leg: leg.copy.finish(), self._legs):
            sent += copied
            differing.update(found)
        return sent, differing

    def stop(self) -> list[str]:
        """Let a round that is under way fail; returns what could not be done."""
        return [problem for leg in self._legs for problem in _tried(leg.copy.stop)]

    def scrub_source(self) -> list[str]:
        """Erase the moved layers where they were, after a commit; returns what could not be done."""
        return self.end() + [problem for leg in self._legs for problem in _tried(partial(leg.source.scrub, leg.layers))]

    def scrub_target(self) -> list[str]:
        """Erase what was copied, when the change is not made; returns what could not be done."""
        return self.end() + [problem for leg in self._legs for problem in _tried(partial(leg.target.scrub, leg.layers))]

    def end(self) -> list[str]:
        """Copy no more; returns what could not be done: a node may be gone."""
        problems: list[str] = []
        for leg in self._legs:
            problems += _tried(leg.copy.end)
            problems += _tried(partial(leg.target.forget_copy, leg.name))
        self._threads.shutdown(wait=False)
        return problems


def _tried(work: Callable[[], object]) -> list[str]:
    try:
        work()
    except Exception as error:  # noqa: BLE001 - told to the caller, who goes on
        return [f"{type(error).__name__}: {error}"]
    return []
