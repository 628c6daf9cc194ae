"""Read an experiment from YAML, and say of everything that is wrong in which line it is and what to do.

`--set path=value` is laid over the file before it is checked. A path is made of fields, of numbers of list entries and
of names of arms: `workload.users=4`, `actions.0.at_s=5`, `arms.dynamic.target.layers=8,22`.

YAML is read by PyYAML's safe loader: no tag makes an object. Two things that YAML allows are mistakes here: a key given
twice, of which PyYAML silently takes the last, and an alias, which can blow up a small file.
"""

import difflib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from loadgen.errors import LoadgenError, OptionsError
from loadgen.experiments.analysis.kinds import arms_named
from loadgen.experiments.schema import MOST_RUNS, Arm, Experiment, Header, Settings, overlaid
from loadgen.experiments.strict import Name
from loadgen.workloads.prompts import TokenIdSource

MOST_BYTES = 1 << 20
_COLLECTIONS = frozenset({"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"})
_ANY_VOCABULARY = 50_000
_HEADER = frozenset(Header.model_fields)
_SETTINGS = frozenset(Settings.model_fields)

_NAME: TypeAdapter[str] = TypeAdapter(Name)

Path_ = tuple[str | int, ...]


class ExperimentFileError(OptionsError):
    """An experiment's file cannot be used; each line of the message names file, line, field, and what to do."""


@dataclass(slots=True)
class Document:
    """An experiment as plain data, and where each of its fields was given, by path: `file:line` or an option."""

    data: dict[str, Any]
    source: str
    places: dict[Path_, str] = field(default_factory=dict)

    def place(self, path: Path_) -> str | None:
        """Return where a field is, or the nearest thing around it that was given; None if only the whole is."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path) if path else None


def read_experiment(file: Path, sets: Sequence[str] = ()) -> Experiment:
    """Return the experiment of a file with `path=value` texts laid over it.

    Raises:
        ExperimentFileError: the file cannot be read, is not YAML, or what it says makes no experiment.
    """
    try:
        with file.open("rb") as content:
            data = content.read(MOST_BYTES + 1)
    except OSError as error:
        raise ExperimentFileError(f"{file}: cannot be read: {error.strerror or error}") from error
    if len(data) > MOST_BYTES:
        raise ExperimentFileError(f"{file}: larger than {MOST_BYTES} bytes, which no experiment is")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ExperimentFileError(f"{file}: not UTF-8 text (byte {error.start})") from error
    return parse_experiment(text, str(file), sets)


def parse_experiment(text: str, source: str, sets: Sequence[str] = ()) -> Experiment:
    """Return the experiment of a YAML text; `source` is what messages call it.

    Raises:
        ExperimentFileError: as `read_experiment`.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is None:
            raise ExperimentFileError(f"{source}: empty; write an Experiment")
        document = _read(root, source)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}" if mark else source
        raise ExperimentFileError(f"{where}: not YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ExperimentFileError(f"{source}: not YAML: {error}") from error
    except RecursionError as error:
        raise ExperimentFileError(f"{source}: nested too deeply") from error
    for each in sets:
        set_over(document, each)
    return check(document)


def check(document: Document) -> Experiment:
    """Return the experiment that a document describes.

    Raises:
        ExperimentFileError: with a line for each problem.
    """
    problems: list[str] = []
    data = document.data
    for key in data.keys() - _HEADER - _SETTINGS - {"arms"}:
        known = ", ".join(sorted(_HEADER | _SETTINGS | {"arms"}))
        problems.append(_told(document, (key,), f"is no field that is known here; there are {known}"))
    header = _validated(Header, {key: data[key] for key in _HEADER & data.keys()}, document, (), problems)
    base = {key: data[key] for key in _SETTINGS & data.keys()}
    arms = _arms(document, base, problems)
    if problems or not isinstance(header, Header):
        raise ExperimentFileError("\n".join(dict.fromkeys(problems)))
    if header.analysis is not None:
        names = [arm.name for arm in arms]
        for key, name in arms_named(header.analysis).items():
            if name not in names:
                told = f"there is no arm {name!r}; there are {', '.join(names)}"
                problems.append(_told(document, ("analysis", key), told))
    if header.repeats * len(arms) > MOST_RUNS:
        runs = header.repeats * len(arms)
        problems.append(_told(document, ("repeats",), f"{runs} runs in all are more than {MOST_RUNS}"))
    if problems:
        raise ExperimentFileError("\n".join(problems))
    return Experiment(header, tuple(arms))


def _arms(document: Document, base: Mapping[str, Any], problems: list[str]) -> list[Arm]:
    """Return the arms; without any in the file there is one, named `run`."""
    given = document.data.get("arms")
    if given is None:
        settings = _validated(Settings, base, document, (), problems)
        if not isinstance(settings, Settings):
            return []
        _plan(settings, document, (), problems)
        return [Arm("run", settings)]
    if not isinstance(given, list) or not given:
        problems.append(_told(document, ("arms",), "must be a list of arms, each with a name; or leave it out"))
        return []
    arms: list[Arm] = []
    names: set[str] = set()
    for number, entry in enumerate(given):
        at: Path_ = ("arms", number)
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(entry, dict) or not isinstance(name, str) or not _is_name(name):
            problems.append(_told(document, (*at, "name"), "an arm needs a name of small letters, digits, . _ and -"))
            continue
        if name in names:
            problems.append(_told(document, (*at, "name"), f"{name!r} is the name of another arm too"))
        names.add(name)
        override = {key: value for key, value in entry.items() if key != "name"}
        for key in override.keys() - _SETTINGS:
            known = ", ".join(sorted(_SETTINGS))
            told = f"is no field that an arm can change; there are {known}"
            problems.append(_told(document, (*at, key), told))
        wanted = overlaid(base, {key: override[key] for key in override.keys() & _SETTINGS})
        settings = _validated(Settings, wanted, document, at, problems)
        if isinstance(settings, Settings):
            _plan(settings, document, at, problems)
            arms.append(Arm(name, settings))
    return arms


def _plan(settings: Settings, document: Document, at: Path_, problems: list[str]) -> None:
    """Refuse a workload that has no end, or whose trace cannot be read, before anything is started."""
    try:
        settings.workload.plan(0, TokenIdSource(_ANY_VOCABULARY))
    except LoadgenError as error:
        problems.append(_told_of_arm(document, at, ("workload",), f"cannot be used: {error}"))


def _is_name(text: str) -> bool:
    try:
        _NAME.validate_python(text)
    except ValidationError:
        return False
    return True


def _validated(
    model: type[Header | Settings], data: Mapping[str, Any], document: Document, at: Path_, problems: list[str]
) -> Header | Settings | None:
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        problems += [_problem(each, data, document, at) for each in error.errors(include_url=False)]
        return None


def _problem(error: Any, data: Mapping[str, Any], document: Document, at: Path_) -> str:
    """Return one of pydantic's errors as a line. An arm's field is looked for in the arm first, then above it."""
    kind, message = error["type"], error["msg"].removeprefix("Value error, ")
    path = _without_tags(error["loc"], data, keep_last=kind in {"missing", "extra_forbidden"})
    given = error["input"]
    shown = "" if isinstance(given, dict | list | tuple) or kind in {"missing", "extra_forbidden"} else repr(given)
    told = {
        "missing": "is missing",
        "extra_forbidden": f"is no field that is known here{_likely(path)}",
        "union_tag_not_found": "needs a kind",
        "string_pattern_mismatch": _FORMS.get(str(path[-1]) if path else "", message),
    }.get(kind, message)
    if kind == "union_tag_invalid":
        told = f"kind {error['ctx']['tag']!r} is none of {error['ctx']['expected_tags']}"
    if shown and kind not in {"union_tag_not_found", "union_tag_invalid"}:
        told = f"is {shown[:60]}: {told}"
    return _told_of_arm(document, at, path, told)


_FORMS = {
    "url": "must be an address such as http://127.0.0.1:8000, with http:// or https:// and without user, ? and #",
    "api_key_env": "must be the name of an environment variable, such as OPENAI_API_KEY; never the key",
    "name": "must be small letters, digits, . _ and -, such as my-experiment",
}


def _likely(path: Path_) -> str:
    """Return what to do about an unknown field: the field that it resembles, if any experiment has one."""
    if path and path[-1] in _every_field():
        return "; it belongs to another kind"
    alike = difflib.get_close_matches(str(path[-1]), _every_field(), n=1) if path else []
    return f"; did you mean {alike[0]}?" if alike else "; check its spelling, or the kind beside it"


@cache
def _every_field() -> tuple[str, ...]:
    """Return the names of all fields that some experiment may have."""
    schemas = [model.model_json_schema() for model in (Header, Settings)]
    models = [each for schema in schemas for each in (schema, *schema.get("$defs", {}).values())]
    return tuple(sorted({name for each in models for name in each.get("properties", ())}))


def _told_of_arm(document: Document, at: Path_, path: Path_, message: str) -> str:
    """Return a line about a field of the arm at `at`, which may have it from above; () for no arm."""
    if at and document.place((*at, *path)) == document.place(at):
        return _told(document, path, message, else_at=at)
    return _told(document, (*at, *path), message)


def _without_tags(location: Sequence[str | int], data: Any, *, keep_last: bool) -> Path_:
    """Return a path into the data: pydantic also names the kinds of unions that it went through.

    A field that is missing is not in the data either: `keep_last` tells it from a kind.
    """
    path: list[str | int] = []
    for number, step in enumerate(location):
        if isinstance(data, Mapping) and isinstance(step, str):
            if step not in data and not (keep_last and number == len(location) - 1):
                continue
            path.append(step)
            data = data.get(step)
        elif isinstance(data, Sequence) and isinstance(step, int) and not isinstance(data, str):
            path.append(step)
            data = data[step] if step < len(data) else None
    return tuple(path)


def _told(document: Document, path: Path_, message: str, else_at: Path_ = ()) -> str:
    start = document.places.get((), document.source)
    where = document.place(path) or document.place(else_at) or start
    name = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")
    named = name and not where.startswith("--")
    return f"{where}: {name} {message}" if named else f"{where}: {message}"


def set_over(document: Document, text: str) -> None:
    """Lay one `path=value` over the document; the value is read as YAML."""
    name, separator, value_text = text.partition("=")
    steps = name.split(".")
    if not separator or not all(steps):
        raise ExperimentFileError(f"--set {text!r}: write path=value, for example workload.users=4")
    try:
        value = yaml.safe_load(value_text)
    except yaml.YAMLError as error:
        raise ExperimentFileError(f"--set {text!r}: {value_text!r} is no value: {error}") from error
    here: Any = document.data
    path: Path_ = ()
    for step, following in itertools.pairwise([*steps, None]):
        key = _key(here, str(step), text)
        path = (*path, key)
        if following is None:
            here[key] = value
        elif isinstance(here, dict) and not isinstance(here.get(key), dict | list):
            here[key] = {}
        here = here[key]
    for known in [each for each in document.places if each[: len(path)] == path]:
        del document.places[known]
    document.places[path] = f"--set {name}"


def _key(here: Any, step: str, text: str) -> str | int:
    if isinstance(here, dict):
        return step
    named = [number for number, each in enumerate(here) if isinstance(each, dict) and each.get("name") == step]
    if named:
        return named[0]
    if step.isdecimal() and int(step) < len(here):
        return int(step)
    raise ExperimentFileError(
        f"--set {text!r}: {step!r} is neither the name nor the number (from 0) of one of {len(here)} entries"
    )


def _read(root: yaml.Node, source: str) -> Document:
    places: dict[Path_, str] = {}
    seen: set[int] = set()
    constructor = yaml.SafeLoader("")

    def read(node: yaml.Node, path: Path_, line: int) -> Any:
        places[path] = f"{source}:{line}"
        if id(node) in seen:
            raise ExperimentFileError(f"{source}:{line}: an alias (*); write it out")
        seen.add(id(node))
        if isinstance(node, yaml.CollectionNode) and node.tag not in _COLLECTIONS:
            raise ExperimentFileError(f"{source}:{line}: {node.tag} is no tag that is known here; remove it")
        if isinstance(node, yaml.MappingNode):
            entries: dict[str, Any] = {}
            for key_node, value_node in node.value:
                at = key_node.start_mark.line + 1
                if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                    raise ExperimentFileError(f"{source}:{at}: a key must be a word")
                key = str(key_node.value)
                if key in entries:
                    raise ExperimentFileError(f"{source}:{at}: {key!r} is given twice; remove one of them")
                entries[key] = read(value_node, (*path, key), at)
            return entries
        if isinstance(node, yaml.SequenceNode):
            return [read(item, (*path, n), item.start_mark.line + 1) for n, item in enumerate(node.value)]
        try:
            return constructor.construct_object(node, deep=True)
        except (yaml.YAMLError, ValueError) as error:
            raise ExperimentFileError(f"{source}:{line}: cannot read {node.value!r}") from error

    data = read(root, (), root.start_mark.line + 1)
    if not isinstance(data, dict):
        raise ExperimentFileError(f"{source}:1: must be a mapping of fields, such as kind: Experiment")
    return Document(data, source, places)
