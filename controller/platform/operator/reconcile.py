"""One look at a pipeline: read what is, have there what should be, do what `plan` says, write down what is true.

Everything is read anew at each look, so it does not matter which replica looks, how often, or where the last one
stopped. What is written before what: the memory of a request before the event, the status last.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import msgspec

from controller.platform.llm_pipeline import API_VERSION, DEFAULT_STAGES, KIND, InvalidPipeline, LLMPipeline
from controller.platform.operator import plan
from controller.platform.operator.apply import PIPELINE, Outdated, Rejected
from controller.platform.operator.facts import PIPELINE_LABEL, ROLE_LABEL
from controller.platform.operator.head import HeadAway, HeadClient, HeadReport
from controller.platform.operator.placement import Unplaced, layout_text, place
from controller.platform.operator.render import start_of, start_spec
from controller.platform.operator.status import rejected
from controller.platform.operator.world import Made, Maker, Note, NotYet, World, broker_address
from runtime.events.catalogue import Type
from runtime.events.envelope import make

if TYPE_CHECKING:
    from controller.platform.operator.apply import Cluster
    from controller.platform.operator.placement import Places
    from controller.platform.operator.trust import Trust

Object = dict[str, Any]

_SEND_S = 10.0
_TOLD = ("Available", "Reconfigured", "Applied")


@dataclass(slots=True)
class Look:
    """What came of a look: when to look again (s), what to tell, and whether something could not be reached."""

    retry_s: float = plan.STEADY_S
    notes: list[Note] = field(default_factory=list)
    away: bool = False


def parse(body: Object) -> LLMPipeline:
    """Return the pipeline that an object of the API server is.

    Raises:
        InvalidPipeline: it breaks rules that the API server does not know.

    """
    metadata = {key: body["metadata"][key] for key in ("name", "namespace")}
    return LLMPipeline.parse(
        {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": body.get("spec") or {}}
    )


class Reconciler:
    """Looks at pipelines of one namespace. Thread-safe, but for two looks at the same pipeline at once.

    Args:
        cluster: the namespace.
        trust: makes tokens and identities.
        image: of everything that is started.

    """

    def __init__(self, cluster: Cluster, trust: Trust, image: str) -> None:
        self._cluster = cluster
        self._trust = trust
        self._maker = Maker(cluster, trust, image)

    def look(self, name: str, failures: int = 0) -> Look:
        """Look once; `failures` is how many looks in a row could not reach something.

        Raises:
            ClusterError: the API server cannot be reached, or refuses what it should not.

        """
        look = Look()
        body = self._cluster.get(PIPELINE, name)
        if body is None or "deletionTimestamp" in body["metadata"]:
            return look
        status, generation = body.get("status") or {}, body["metadata"]["generation"]
        try:
            pipeline = parse(body)
        except InvalidPipeline as error:
            self._write_status(body, rejected(status, generation, str(error), time.time()), look)
            return look
        migration = pipeline.spec.migration
        seen = plan.Observed(
            uid=body["metadata"]["uid"],
            generation=generation,
            now=time.time(),
            head=HeadAway("Starting", "the head is not there yet"),
            method=migration.method,
            fallback=migration.fallback,
            memory=_memory(body),
            status=status,
            failures=failures,
        )
        world = World.observe(self._cluster, self._trust, name, seen.uid)
        self._carry_out(*self._make(pipeline, world, seen, look), body, look)
        return look

    def _make(
        self, pipeline: LLMPipeline, world: World, seen: plan.Observed, look: Look
    ) -> tuple[plan.Observed, HeadClient | None]:
        """Have the objects there; return what was seen then, and the head if it can be asked."""
        places: Places | None = None
        try:
            places = place(pipeline, world.nodes, [stage["node"] for stage in seen.status.get("stages") or ()])
        except Unplaced as error:
            if world.started_with(pipeline.name) is None:
                return dataclasses.replace(seen, applied=plan.Trouble("Unplaced", str(error), lasting=False)), None
            seen = dataclasses.replace(seen, unwanted=str(error))
        restarts = _restart_fields(pipeline, world)
        if restarts:
            told = f"the head is started again for {', '.join(restarts)}"
            look.notes.append(Note("Restarting", told))
        functions = _stage_functions(pipeline, world, seen)
        try:
            made = self._maker.make(pipeline, seen.uid, places, functions, world, seen.status, look.notes)
        except (NotYet, InvalidPipeline) as error:
            reason = error.reason if isinstance(error, NotYet) else "Invalid"
            return dataclasses.replace(seen, applied=plan.Trouble(reason, str(error), lasting=False)), None
        except Rejected as error:
            return dataclasses.replace(seen, applied=plan.Trouble("Rejected", str(error))), None
        return _with_head(seen, pipeline, places, world, made)

    # -- acting --------------------------------------------------------------------------------------------------------

    def _carry_out(self, seen: plan.Observed, head: HeadClient | None, body: Object, look: Look) -> None:
        decision = plan.decide(seen)
        if decision.request is not None and decision.memory is not None:
            self._remember(body, decision.memory)
            seen = dataclasses.replace(seen, memory=decision.memory)
            if problem := self._send(decision.request, body["metadata"]["name"]):
                look.notes.append(Note("EventNotSent", f"the head is asked without an event: {problem}", warning=True))
                seen = dataclasses.replace(seen, event_failed=True)
            decision = plan.decide(seen)
        if decision.inquire is not None and head is not None:
            answer = head.inquire(decision.inquire)
            if isinstance(said := head.status(), HeadReport):
                seen = dataclasses.replace(seen, head=said)
            seen = dataclasses.replace(seen, answer=answer)
            decision = plan.decide(seen)
        if decision.memory is not None and decision.memory != seen.memory:
            self._remember(body, decision.memory)
        look.away = isinstance(seen.head, HeadAway) or (seen.applied is not None and not seen.applied.lasting)
        look.retry_s = decision.retry_s
        self._write_status(body, decision.status, look)

    def _send(self, request: plan.Request, pipeline: str) -> str | None:
        """Send the request to the Broker; return why it did not get there."""
        data = {
            "pipeline": pipeline,
            "layers": request.layers,
            "method": str(request.method),
            "fallback": str(request.fallback),
            "generation": request.generation,
        }
        event = make(Type.RECONFIGURATION_REQUESTED, plan.SOURCE, pipeline, data, id=request.id)
        headers, body = event.to_http_binary()
        try:
            address = broker_address(self._cluster)
            if address is None:
                return "there is no Broker"
            answer = httpx.post(address, headers=headers, content=body, timeout=_SEND_S, trust_env=False)
        except (NotYet, httpx.HTTPError, httpx.InvalidURL) as error:
            return f"the Broker cannot be reached: {error}"
        return None if answer.is_success else f"the Broker answers {answer.status_code}: {answer.text[:200]}"

    def _remember(self, body: Object, memory: plan.Memory) -> None:
        annotations = {plan.MEMORY_ANNOTATION: msgspec.json.encode(memory).decode()}
        metadata = {"uid": body["metadata"]["uid"], "annotations": annotations}
        self._cluster.merge(PIPELINE, body["metadata"]["name"], {"metadata": metadata})

    def _write_status(self, body: Object, status: Object, look: Look) -> None:
        before = body.get("status") or {}
        status = {**status, "selector": f"{PIPELINE_LABEL}={body['metadata']['name']},{ROLE_LABEL}=stage"}
        look.notes += _transitions(before, status)
        if status == before:
            return
        metadata = {key: body["metadata"][key] for key in ("name", "namespace", "uid")}
        obj = {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "status": status}
        try:
            self._cluster.apply(obj, force=True, subresource="status")
        except Outdated:
            return  # it was deleted, and made anew

    def write_status(self, body: Object, status: Object) -> None:
        """Write a status that does not come of a look."""
        self._write_status(body, status, Look())


def _with_head(
    seen: plan.Observed, pipeline: LLMPipeline, places: Places | None, world: World, made: Made
) -> tuple[plan.Observed, HeadClient | None]:
    """Ask the head what serves, and compare that with what is wanted."""
    pod, head = world.head_pod, made.head
    if pod is None or not pod.started or pod.ip is None:
        return dataclasses.replace(seen, pod_trouble=pod.trouble if pod is not None else None), None
    if head is not None and pod.start != start_of(head):
        return dataclasses.replace(seen, restarting=True), None
    client = HeadClient(f"http://{f'[{pod.ip}]' if ':' in pod.ip else pod.ip}:{pod.http_port}", made.token)
    said = client.status()
    seen = dataclasses.replace(seen, head=said, pod_started=True)
    if not isinstance(said, HeadReport) or places is None:
        return seen, client
    strange = [node for node in dict.fromkeys(places) if node and node not in made.start.nodes]
    if strange:
        told = (
            f"the head was started without {', '.join(strange)}; it can use {', '.join(made.start.nodes) or 'none'}; "
            f"restart it to use them: kubectl delete pod {pod.name}"
        )
        return dataclasses.replace(seen, unwanted=told), client
    try:
        return dataclasses.replace(seen, wanted=layout_text(pipeline, places, said.total_layers)), client
    except InvalidPipeline as error:
        return dataclasses.replace(seen, unwanted=str(error)), client


def _memory(body: Object) -> plan.Memory | None:
    text = (body["metadata"].get("annotations") or {}).get(plan.MEMORY_ANNOTATION)
    try:
        return msgspec.json.decode(text, type=plan.Memory) if text else None
    except msgspec.DecodeError:
        return None  # somebody wrote something else there; asking twice does nothing twice


def _restart_fields(pipeline: LLMPipeline, world: World) -> list[str]:
    """Return the fields for which the head has to be started again."""
    started = world.started_with(pipeline.name)
    before, now = (started.spec, start_spec(pipeline)) if started is not None else ({}, {})
    return sorted(path for path in before.keys() | now.keys() if before.get(path) != now.get(path))


def _stage_functions(pipeline: LLMPipeline, world: World, seen: plan.Observed) -> int:
    """Return how many stages have a function: as many as were asked for last with success."""
    spec = pipeline.spec
    wanted = len(spec.stages) if spec.stages else spec.auto.stages if spec.auto else DEFAULT_STAGES
    there = world.stage_functions(pipeline.name)
    settled = seen.memory is not None and seen.memory.generation == seen.generation and seen.memory.state == "settled"
    told = plan.said_before(seen)
    in_force = settled and told is not None and told.status == "True" and told.reason != plan.CHANGED_SINCE
    return wanted if in_force or not there else there


def _transitions(before: Object, after: Object) -> list[Note]:
    """Return an Event for each condition that says something else than before."""
    known = {told["type"]: (told["status"], told["reason"]) for told in before.get("conditions") or ()}
    return [
        Note(told["reason"], told["message"], warning=told["status"] == "False")
        for told in after["conditions"]
        if told["type"] in _TOLD and known.get(told["type"]) != (told["status"], told["reason"])
    ]
