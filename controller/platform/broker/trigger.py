"""Who gets which events, and what happens when they are not taken: a Trigger, read from the object for a cluster.

The very manifest that ``kubectl apply`` takes (``eventing.knative.dev/v1``, kind ``Trigger``) works here. `manifest.py`
has its shape; this module makes a `Trigger` of it, whose destinations are addresses: a ``ref`` names a Knative Service,
and who starts the broker says at which address that runs here.

Differences from a cluster: ``broker`` may be any name, as there is one broker; a namespace in a ``ref`` is not looked
at; ``cesql``, ``audience`` and ``CACerts`` are refused. A trigger without ``delivery`` gets what Knative gives a broker
(``config-br-defaults``: ten retries, exponential from 0.2 s); with it, ``retry`` is 0 unless it is given, as on a
cluster, and the back-off is exponential from 0.2 s unless it is given (a cluster would retry at once).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

import httpx
import yaml
from pydantic import ValidationError

from controller.platform.broker.filters import AllOf, AnyOf, Comparing, Comparison, Filter, Matching, Not
from controller.platform.broker.manifest import DestinationManifest, FilterManifest, SpecManifest, TriggerManifest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_MOST_DELAY_S = 3600.0
EVERYTHING: Filter = AllOf(())


class TriggerError(ValueError):
    """A trigger cannot be used; the message says where, what and what to do."""


class _WrongField(Exception):
    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.path = path


@dataclass(frozen=True, slots=True)
class Delivery:
    """What happens to an event that is not taken; times in seconds."""

    retries: int = 10
    linear: bool = False
    backoff_s: float = 0.2
    timeout_s: float = 300.0
    most_retry_after_s: float = 300.0
    dead_letter_sink: str | None = None
    structured: bool = False

    def delay_s(self, retries_made: int, retry_after_s: float = 0.0) -> float:
        """Return how long to wait before the next try, when so many retries were made.

        As Knative does: ``backoffDelay * n`` or ``backoffDelay * 2^n``, or longer if the subscriber asked for it.
        """
        factor = retries_made if self.linear else 2.0 ** min(retries_made, 60)
        return min(max(self.backoff_s * factor, min(retry_after_s, self.most_retry_after_s)), _MOST_DELAY_S)


@dataclass(frozen=True, slots=True)
class Trigger:
    """A subscriber's address, the events that it gets, and how; `manifest` is the object that it was made of."""

    name: str
    subscriber: str
    filter: Filter = EVERYTHING
    delivery: Delivery = Delivery()
    manifest: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)


def parse_trigger(manifest: object, services: Mapping[str, str]) -> Trigger:
    """Make a trigger of a Knative Trigger object.

    Args:
        manifest: the object, as YAML or JSON gives it.
        services: the addresses of Knative Services, by name.

    Raises:
        TriggerError: it is wrong, or cannot work here.

    """
    return _parse(manifest, services)


def read_triggers(file: Path, services: Mapping[str, str]) -> list[Trigger]:
    """Read the triggers of a YAML file; objects of other kinds in it are passed over.

    Raises:
        TriggerError: the file cannot be read, has no Trigger, or a wrong one; the message names file and line.

    """
    triggers = []
    try:
        loader = yaml.SafeLoader(file.read_text("utf-8"))
        while loader.check_node():
            node = loader.get_node()
            document = loader.construct_document(node)
            if isinstance(document, dict) and document.get("kind") == "Trigger":
                triggers.append(_parse(document, services, f"{file}:", node))
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise TriggerError(f"{file}{line}: not YAML: {error.problem or error.context}") from error
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        if isinstance(error, TriggerError):
            raise
        raise TriggerError(f"{file}: cannot be read: {error}") from error
    if not triggers:
        raise TriggerError(f"{file}: has no object of kind Trigger")
    return triggers


def _parse(manifest: object, services: Mapping[str, str], where: str = "", node: yaml.Node | None = None) -> Trigger:
    read = _validated(manifest, where, node)
    spec = read.spec
    try:
        return Trigger(
            name=read.metadata.name,
            subscriber=_address("spec.subscriber", spec.subscriber, services),
            filter=_filter(spec),
            delivery=_delivery(spec, services),
            manifest=read.model_dump(mode="json", by_alias=True, exclude_unset=True),
        )
    except _WrongField as error:
        raise TriggerError(f"{_at(where, node, error.path.split('.'))}{error.path}: {error}") from error


def _validated(manifest: object, where: str, node: yaml.Node | None) -> TriggerManifest:
    try:
        try:
            return TriggerManifest.model_validate(manifest)
        except ValidationError as error:
            lines = [_told(problem, where, node) for problem in error.errors(include_url=False)]
            raise TriggerError("\n".join(lines)) from error
    except RecursionError as error:
        raise TriggerError(f"{_at(where, node, [])}the trigger is nested too deeply") from error


def _told(problem: Any, where: str, node: yaml.Node | None) -> str:
    path = [step for step in problem["loc"] if isinstance(step, int) or step.isidentifier()]
    name = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")
    given = "" if problem["type"] in {"missing", "extra_forbidden"} else f" is {_short(problem['input'])}:"
    message = {"missing": "is missing", "extra_forbidden": "is no field that is known here; check its spelling"}.get(
        problem["type"], problem["msg"].removeprefix("Value error, ")
    )
    return f"{_at(where, node, path)}{name or 'the trigger'}{given} {message}"


def _at(where: str, node: yaml.Node | None, path: list[Any]) -> str:
    """Return ``file:line: `` of what is at a path, or of the nearest thing around it that is there."""
    if node is None:
        return ""
    line = node.start_mark.line
    for step in path:
        if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            line = node.start_mark.line
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == step:
                    line, node = key.start_mark.line, value
                    break
            else:
                break
    return f"{where}{line + 1}: "


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _address(path: str, destination: DestinationManifest, services: Mapping[str, str]) -> str:
    uri, ref = destination.uri, destination.ref
    if ref is not None:
        base = services.get(ref.name)
        if base is None:
            known = f"known are: {', '.join(sorted(services))}" if services else "none is known"
            raise _WrongField(
                f"{path}.ref.name",
                f"no Service {ref.name!r} runs here; {known}. Give its address with "
                f"--service {ref.name}=http://127.0.0.1:8081, or use uri",
            )
        uri = urljoin(base, uri or "")
    elif uri is None:
        raise _WrongField(path, "has neither uri nor ref; give one, such as uri: http://127.0.0.1:8081")
    try:
        parts = urlsplit(uri)
        if parts.username or parts.password:  # not repeated here: addresses are shown and logged
            raise _WrongField(f"{path}.uri", "has a user or a password; give an address without them")
        if parts.scheme in {"http", "https"} and parts.hostname:
            return str(httpx.URL(uri))
    except (ValueError, httpx.InvalidURL):
        pass  # said below
    raise _WrongField(f"{path}.uri", f"{_short(uri)} is no address such as http://127.0.0.1:8081")


def _delivery(spec: SpecManifest, services: Mapping[str, str]) -> Delivery:
    if spec.delivery is None:
        return Delivery()
    given, sink = spec.delivery, spec.delivery.dead_letter_sink
    most = given.retry_after_max
    standard = Delivery()
    return Delivery(
        retries=given.retry or 0,
        linear=given.backoff_policy == "linear",
        backoff_s=standard.backoff_s if given.backoff_delay is None else given.backoff_delay.total_seconds(),
        timeout_s=standard.timeout_s if given.timeout is None else given.timeout.total_seconds(),
        most_retry_after_s=standard.most_retry_after_s if most is None else most.total_seconds(),
        dead_letter_sink=None if sink is None else _address("spec.delivery.deadLetterSink", sink, services),
        structured=given.format == "json",
    )


def _filter(spec: SpecManifest) -> Filter:
    """Return the filter; ``filters`` overrides ``filter``, as Knative says."""
    if spec.filters:
        return AllOf(tuple(map(_one_filter, spec.filters)))
    wanted = (spec.filter and spec.filter.attributes) or {}
    return Matching(tuple(wanted.items())) if wanted else EVERYTHING


def _one_filter(given: FilterManifest) -> Filter:
    return next(_filters(given))


def _filters(given: FilterManifest) -> Iterator[Filter]:
    for comparison in Comparison:
        wanted = getattr(given, comparison)
        if wanted is not None:
            yield Comparing(comparison, tuple(wanted.items()))
    if given.all is not None:
        yield AllOf(tuple(map(_one_filter, given.all)))
    if given.any is not None:
        yield AnyOf(tuple(map(_one_filter, given.any)))
    if given.not_ is not None:
        yield Not(_one_filter(given.not_))
