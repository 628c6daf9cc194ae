"""`midstream intent bench`: how many sentences are understood, and whether a wrong policy would ever be applied."""

from __future__ import annotations

import json
import sys
from pathlib import Path  # noqa: TC003 - typer reads it
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from intents.errors import IntentsError
from intents.knowledge.naming import naming
from intents.model.inventory import read_inventory
from intents.planning import plan_sentence
from intents.translators import TranslatorKind, make_translator, witness

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from intents.benchmark.cases import Case
    from intents.model.intent import PrivacyIntent
    from intents.model.inventory import Inventory
    from intents.translation.interface import Translator

_out = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
_err = Console(stderr=True, highlight=False)


def bench(
    translator: Annotated[
        TranslatorKind, typer.Option(help="Who understands the sentences.")
    ] = TranslatorKind.EMBEDDED,
    endpoint: Annotated[str | None, typer.Option(envvar="MIDSTREAM_INTENT_ENDPOINT", help="OpenAI endpoint.")] = None,
    model: Annotated[str | None, typer.Option(help="Its model; default: the first that it lists.")] = None,
    hash_names: Annotated[bool, typer.Option("--hash-names", help="Show the model made-up names.")] = False,
    part: Annotated[
        list[str] | None, typer.Option(help="Only this part: intents, traps, paraphrases or exams; may be repeated.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many cases of each part.")] = None,
    with_growth: Annotated[
        bool, typer.Option("--growth", help="Also time planning over the size of the inventory.")
    ] = False,
    file: Annotated[
        list[Path] | None, typer.Option(help="Cases of your own in the benchmark's format, instead; may be repeated.")
    ] = None,
    inventory: Annotated[Path | None, typer.Option(help="The inventory that they are about.")] = None,
    failures: Annotated[bool, typer.Option("--failures", help="Also show every case that went wrong.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Try the benchmark's sentences, judge each plan by expectations written before the translator."""
    from intents.benchmark import cases, growth, runner

    try:
        chosen = make_translator(translator, endpoint, model, hashed=hash_names)
        if file:
            parts, inventories = _own(file, inventory)
        else:
            parts, inventories = cases.bundled(part or list(cases.PARTS)), cases.bundled_inventories()
        if limit is not None:
            parts = {name: found[:limit] for name, found in parts.items()}
        report = runner.run(str(translator), chosen, _plan, parts, inventories)
        timed = growth.measure(_plan_alone) if with_growth else []
    except IntentsError as error:
        _err.print(f"midstream: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(1) from error
    if as_json:
        typer.echo(json.dumps(report.to_json() | ({"growth": growth.to_json(timed)} if timed else {})))
        return
    _out.print(report.table())
    if timed:
        _out.print(growth.table(timed))
    if failures:
        for tried in report.tried:
            if not tried.judgement.verdict.right:
                _out.print(f"{tried.id}: {tried.sentence}", markup=False, soft_wrap=True)
                _out.print(
                    f"    {tried.error or tried.judgement.verdict}: {'; '.join(tried.judgement.reasons)}",
                    markup=False,
                    soft_wrap=True,
                )


def _own(files: Sequence[Path], inventory: Path | None) -> tuple[dict[str, tuple[Case, ...]], Mapping[str, Inventory]]:
    from intents.benchmark import cases

    inventories = dict(cases.bundled_inventories())
    if inventory is not None:
        inventories[inventory.stem] = read_inventory(inventory)
    return {file.stem: cases.read_cases(file, inventories) for file in files}, inventories


def _plan(
    translator: Translator, sentence: str, inventory: Inventory, active: Sequence[PrivacyIntent]
) -> Mapping[str, Any]:
    made = plan_sentence(sentence, inventory, translator, active=active, witness=witness(), naming=naming)
    return made.to_json()


def _plan_alone(sentence: str, inventory: Inventory) -> Mapping[str, Any]:
    return _plan(witness(), sentence, inventory, ())
