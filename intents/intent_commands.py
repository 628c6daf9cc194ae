"""`midstream intent`: plan a sentence, enforce it, look at what is active, and check that it holds.

Exit codes: 0 all is well, 2 refused (or, for `check`, an intent does not hold), 1 something went wrong.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from intents.bench_command import bench
from intents.compilation.compiled import NOTHING
from intents.errors import IntentsError
from intents.knowledge.naming import naming
from intents.live_midstream import merged, with_stages
from intents.model.inventory import read_inventory
from intents.planning import Plan, enforced, plan_all, plan_intent, plan_sentence
from intents.proof.checker import check
from intents.service import guard
from intents.store import IntentStore, default_folder, read_intent
from intents.targets import Targets
from intents.translators import TranslatorKind, make_translator, witness
from intents.watch_command import DEFAULT_PIPELINE, Here, RunningHead, RunningName, running_pipeline, watch

if TYPE_CHECKING:
    from intents.model.intent import PrivacyIntent
    from intents.model.inventory import Inventory
    from intents.proof.report import Report

app = typer.Typer(
    help="Privacy intents: from a sentence to placement and routes that provably hold.", no_args_is_help=True
)
app.command()(bench)
app.command()(guard)
app.command()(watch)

_out = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
_err = Console(stderr=True, highlight=False)
_FAILED, _REFUSED = 1, 2

InventoryFile = Annotated[
    Path, typer.Option("--inventory", "-i", help="Snapshot of nodes, workloads, switches, links.")
]
State = Annotated[Path | None, typer.Option(help="Folder of the active intents; default: in the user's state.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Kind = Annotated[TranslatorKind, typer.Option("--translator", help="Who understands the sentence.")]
Endpoint = Annotated[
    str | None,
    typer.Option(envvar="MIDSTREAM_INTENT_ENDPOINT", help="OpenAI endpoint, such as http://127.0.0.1:8000/v1."),
]
Model = Annotated[str | None, typer.Option(help="Its model; default: the first that it lists.")]
HashNames = Annotated[
    bool, typer.Option("--hash-names", help="Show the model made-up names instead of the inventory's.")
]
Onos = Annotated[
    str | None,
    typer.Option(help="ONOS to enforce flow rules with; user and password from ONOS_USER and ONOS_PASSWORD."),
]
OpenFlow = Annotated[
    Path | None, typer.Option("--openflow", help="Unix socket of the OpenFlow controller to enforce flow rules with.")
]
Kubernetes = Annotated[
    bool, typer.Option("--kubernetes", help="Enforce placement in the cluster of the current kubeconfig context.")
]
Out = Annotated[Path | None, typer.Option("--out", help="Write manifests and flow rules to this folder.")]


@app.command()
def plan(
    sentence: Annotated[str, typer.Argument(help="What must hold, in plain words.")],
    inventory: InventoryFile,
    translator: Kind = TranslatorKind.EMBEDDED,
    endpoint: Endpoint = None,
    model: Model = None,
    hash_names: HashNames = False,
    with_active: Annotated[bool, typer.Option("--with-active", help="Together with the active intents.")] = False,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Say what a sentence comes to; nothing is enforced."""
    try:
        snapshot = read_inventory(inventory)
        active = IntentStore(state or default_folder()).active() if with_active else ()
        made = _plan(sentence, snapshot, translator, endpoint, model, hash_names, active)
    except IntentsError as error:
        _fail(str(error))
    _show(made, as_json=as_json)
    if made.refusal is not None:
        raise typer.Exit(_REFUSED)


@app.command()
def apply(
    inventory: InventoryFile,
    sentence: Annotated[str | None, typer.Argument(help="What must hold, in plain words.")] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="A typed intent instead of a sentence.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the intent; default: derived from the sentence.")] = None,
    translator: Kind = TranslatorKind.EMBEDDED,
    endpoint: Endpoint = None,
    model: Model = None,
    hash_names: HashNames = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask whether the read-back is what you mean.")
    ] = False,
    onos: Onos = None,
    openflow: OpenFlow = None,
    kubernetes: Kubernetes = False,
    out: Out = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Enforce a sentence, or a typed intent, together with all that are active."""
    if (sentence is None) == (file is None):
        _fail("give either a sentence or --file")
    store = IntentStore(state or default_folder())
    try:
        snapshot = read_inventory(inventory)
        with Targets(onos=onos, openflow=openflow, kubernetes=kubernetes, folder=out) as targets, store.locked():
            active = store.active()
            if sentence is not None:
                made = _plan(sentence, snapshot, translator, endpoint, model, hash_names, active, name)
            else:
                intent = read_intent(file or Path())
                made = plan_intent(intent, snapshot, active=active, naming=naming)
            if made.refusal is None:
                _confirm(made, yes=yes, quiet=as_json)
                _enforce(store, targets, made, active, snapshot)
    except IntentsError as error:
        _fail(str(error))
    _show(made, as_json=as_json)
    if made.refusal is not None:
        raise typer.Exit(_REFUSED)


@app.command("list")
def list_intents(state: State = None, as_json: Json = False) -> None:
    """List the active intents."""
    active = _active(state)
    if as_json:
        _print_json([each.model_dump(mode="json") for each in active])
        return
    table = Table("name", "sentence", box=None)
    for each in active:
        table.add_row(each.metadata.name, escape(each.metadata.sentence or "(typed)"))
    _out.print(table if active else "no intent is active")


@app.command()
def explain(
    name: Annotated[str, typer.Argument(help="Name of an active intent.")],
    inventory: InventoryFile,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Say what an active intent means, and what it comes to now."""
    try:
        intent = _named(name, _active(state))
        made = plan_intent(intent, read_inventory(inventory), naming=naming)
    except IntentsError as error:
        _fail(str(error))
    _show(made, as_json=as_json)


@app.command()
def delete(
    name: Annotated[str, typer.Argument(help="Name of an active intent.")],
    inventory: InventoryFile,
    onos: Onos = None,
    openflow: OpenFlow = None,
    kubernetes: Kubernetes = False,
    out: Out = None,
    state: State = None,
) -> None:
    """Stop enforcing an intent; the others go on."""
    store = IntentStore(state or default_folder())
    try:
        snapshot = read_inventory(inventory)
        with Targets(onos=onos, openflow=openflow, kubernetes=kubernetes, folder=out) as targets, store.locked():
            active = store.active()
            gone = _named(name, active)
            left = [each for each in active if each is not gone]
            made = plan_all(left, snapshot) if left else None
            if made is not None and made.refusal is not None:
                _fail(f"without {name} the other intents cannot be met, nothing was changed: {made.refusal.message}")
            after = NOTHING if made is None or made.compiled is None else made.compiled
            targets.enforce(after, enforced(active, snapshot), snapshot, left)
            store.remove(name)
    except IntentsError as error:
        _fail(str(error))
    _out.print(f"{name} is no longer enforced")


@app.command("check")
def check_intents(
    inventory: InventoryFile,
    flows: Annotated[
        Path | None, typer.Option(help="Flow rules as installed, in ONOS' form; default: from --onos or --openflow.")
    ] = None,
    onos: Onos = None,
    openflow: OpenFlow = None,
    kubernetes: Kubernetes = False,
    head: RunningHead = None,
    pipeline: RunningName = DEFAULT_PIPELINE,
    here: Here = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Prove that the active intents hold for what runs and what is installed, or say what does not."""
    active = _active(state)
    try:
        snapshot = read_inventory(inventory)
        given = None if flows is None else _read_flows(flows)
        with (
            Targets(onos=onos, openflow=openflow, kubernetes=kubernetes) as targets,
            running_pipeline(head, pipeline, here) as source,
        ):
            running = None if source is None else source.read()
            snapshot = snapshot if running is None else merged(snapshot, [running])
            report = check(active, with_stages(targets.observe(snapshot, given), snapshot, running))
    except IntentsError as error:
        _fail(str(error))
    if as_json:
        _print_json({"holds": report.holds, "checks": _checks(report)})
    else:
        _show_report(report)
    if not report.holds:
        raise typer.Exit(_REFUSED)


def _plan(
    sentence: str,
    inventory: Inventory,
    kind: TranslatorKind,
    endpoint: str | None,
    model: str | None,
    hash_names: bool,
    active: tuple[PrivacyIntent, ...],
    name: str | None = None,
) -> Plan:
    translator = make_translator(kind, endpoint, model, hashed=hash_names)
    return plan_sentence(sentence, inventory, translator, active=active, witness=witness(), name=name, naming=naming)


def _confirm(made: Plan, *, yes: bool, quiet: bool) -> None:
    """Let the user see the read-back, and say no."""
    if yes and not made.needs_confirmation:
        return
    for line in made.readback:
        (_err if quiet else _out).print(f"  {line}", markup=False)
    if made.needs_confirmation:
        _err.print("only a language model understood this sentence: --yes is not enough, read it", markup=False)
    if not typer.confirm("Enforce this?", err=True):
        _fail("not enforced")


def _enforce(
    store: IntentStore, targets: Targets, made: Plan, active: tuple[PrivacyIntent, ...], inventory: Inventory
) -> None:
    """Tell whoever enforces, then remember: what was told and not remembered is told again by the next apply."""
    if made.intent is None or made.compiled is None:
        return
    together = [*(each for each in active if each.metadata.name != made.intent.metadata.name), made.intent]
    targets.enforce(made.compiled, enforced(active, inventory), inventory, together)
    store.put(made.intent)


def _read_flows(path: Path) -> list[dict[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise IntentsError(f"{path}: cannot be read as JSON: {error}") from error
    rules = content.get("flows") if isinstance(content, dict) else content
    if not isinstance(rules, list):
        raise IntentsError(f'{path}: holds no list of flow rules; expected {{"flows": [...]}}')
    return rules


def _active(state: Path | None) -> tuple[PrivacyIntent, ...]:
    try:
        return IntentStore(state or default_folder()).active()
    except IntentsError as error:
        _fail(str(error))


def _named(name: str, active: tuple[PrivacyIntent, ...]) -> PrivacyIntent:
    for each in active:
        if each.metadata.name == name:
            return each
    there = ", ".join(each.metadata.name for each in active) or "none"
    raise IntentsError(f"no intent {name!r} is active; active: {there}")


def _show(made: Plan, *, as_json: bool) -> None:
    if as_json:
        _print_json(made.to_json())
        return
    if made.refusal is not None:
        _err.print(f"refused ({made.refusal.kind}): {made.refusal.message}", markup=False, soft_wrap=True)
        for detail in made.refusal.details:
            _err.print(f"  {detail}", markup=False, soft_wrap=True)
        if made.refusal.nearest is not None:
            _err.print(f"nearest: {made.refusal.nearest}", markup=False, soft_wrap=True)
        return
    for line in made.readback:
        _out.print(line, markup=False, soft_wrap=True)
    if made.compiled is None or made.report is None:
        return
    if made.compiled.placements:
        table = Table("workload", "may run on", "runs on", box=None)
        for placement in made.compiled.placements:
            table.add_row(placement.workload, " ".join(placement.allowed_nodes), placement.node)
        _out.print(table)
    if made.compiled.routes or made.compiled.blocked:
        table = Table("from", "to", "path", box=None)
        for route in made.compiled.routes:
            table.add_row(route.source, route.target, " > ".join(route.path) or "(same node)")
        for source, target in made.compiled.blocked:
            table.add_row(source, target, "cut off")
        _out.print(table)
    held = sum(each.holds for each in made.report.checks)
    _out.print(
        f"{held} of {len(made.report.checks)} checks hold; {len(made.compiled.flows)} flow rules, "
        f"{len(made.compiled.kubernetes)} manifests; {made.latency_ms:.0f} ms"
    )


def _show_report(report: Report) -> None:
    if not report.checks:
        _out.print("no intent is active: nothing is proven")
    table = Table("", "intent", "subject", "rule", "why", box=None)
    for each in report.checks:
        table.add_row(
            "holds" if each.holds else "FAILS", each.intent, *map(escape, (each.subject, each.rule, each.reason))
        )
    _out.print(table)


def _checks(report: Report) -> list[dict[str, Any]]:
    return [
        {"intent": each.intent, "subject": each.subject, "rule": each.rule, "holds": each.holds, "reason": each.reason}
        | {"looked_at": list(each.looked_at)}
        for each in report.checks
    ]


def _print_json(content: Any) -> None:
    typer.echo(json.dumps(content, ensure_ascii=False))


def _fail(message: str) -> NoReturn:
    _err.print(f"midstream: {message}", markup=False, soft_wrap=True)
    raise typer.Exit(_FAILED)
