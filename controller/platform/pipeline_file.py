"""Read an LLMPipeline from a YAML file, with the line of what is wrong.

YAML is read by PyYAML's safe loader: no tag makes an object. Three things that YAML allows are mistakes here: a key
given twice, of which PyYAML silently takes the last; an alias, which can blow up a small file (nobody needs one here);
and several documents, unless exactly one of them is an LLMPipeline (a file for a cluster may hold other objects too).
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

import yaml

from controller.platform.llm_pipeline import KIND, InvalidPipeline, LLMPipeline, PipelineFileError

if TYPE_CHECKING:
    from pathlib import Path

    from controller.platform.llm_pipeline import Problem

MOST_BYTES = 1 << 20
_DEFAULT = "default.yaml"
_COLLECTIONS = frozenset({"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"})
_Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class _Document:
    """A YAML document as plain data, and on which line each of its fields is, by path."""

    data: Any
    lines: dict[str, int]


def read_pipeline(file: Path | None) -> LLMPipeline:
    """Return the LLMPipeline of a file, or the default one.

    Raises:
        PipelineFileError: the file cannot be read, is not YAML, has no LLMPipeline or more than one, or what it has
            breaks rules; the message names file and lines.

    """
    if file is None:
        return parse_text(resources.files("controller.platform").joinpath(_DEFAULT).read_text("utf-8"), _DEFAULT)
    try:
        with file.open("rb") as content:
            data = content.read(MOST_BYTES + 1)
    except OSError as error:
        raise PipelineFileError(f"{file}: cannot read it: {error.strerror or error}") from error
    if len(data) > MOST_BYTES:
        raise PipelineFileError(f"{file}: larger than {MOST_BYTES} bytes, which no LLMPipeline is")
    try:
        return parse_text(data.decode("utf-8-sig"), str(file))
    except UnicodeDecodeError as error:
        raise PipelineFileError(f"{file}: not UTF-8 text (byte {error.start})") from error


def parse_text(text: str, source: str) -> LLMPipeline:
    """Return the LLMPipeline that a YAML text has; `source` is what messages call it.

    Raises:
        PipelineFileError: as `read_pipeline`.

    """
    try:
        roots = [root for root in yaml.compose_all(text, Loader=yaml.SafeLoader) if root is not None]
        document = _read(_the_only(roots, source), source)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}" if mark else source
        raise PipelineFileError(f"{where}: not YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise PipelineFileError(f"{source}: not YAML: {error}") from error
    except RecursionError as error:
        raise PipelineFileError(f"{source}: nested too deeply") from error
    try:
        return LLMPipeline.parse(document.data)
    except InvalidPipeline as error:
        lines = [f"{source}:{_line_of(problem, document)}: {problem}" for problem in error.problems]
        raise PipelineFileError("\n".join(lines)) from error


def _the_only(roots: list[yaml.Node], source: str) -> yaml.Node:
    if not roots:
        raise PipelineFileError(f"{source}: empty; write an LLMPipeline")
    if len(roots) == 1:
        return roots[0]
    found = [root for root in roots if _kind_of(root) == KIND]
    if len(found) == 1:
        return found[0]
    at = ", ".join(f"line {root.start_mark.line + 1}" for root in found)
    told = f"{len(found)} of its documents are of kind {KIND} ({at})" if found else f"no document is of kind {KIND}"
    raise PipelineFileError(f"{source}: {told}; there must be exactly one")


def _kind_of(root: yaml.Node) -> str | None:
    entries = root.value if isinstance(root, yaml.MappingNode) else []
    return next((value.value for key, value in entries if key.value == "kind"), None)


def _line_of(problem: Problem, document: _Document) -> int:
    """Return the line of a problem's field, or of the nearest thing around it that is there."""
    path = problem.path
    while path not in document.lines:
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    return document.lines[path]


def _read(root: yaml.Node, source: str) -> _Document:
    lines: dict[str, int] = {}
    seen: set[int] = set()
    constructor = yaml.SafeLoader("")

    def read(node: yaml.Node, path: str, line: int) -> Any:
        lines[path] = line
        if id(node) in seen:
            raise PipelineFileError(f"{source}:{line}: an alias (*); write it out")
        seen.add(id(node))
        if isinstance(node, yaml.CollectionNode) and node.tag not in _COLLECTIONS:
            raise PipelineFileError(f"{source}:{line}: {node.tag} is no tag that is known here; remove it")
        if isinstance(node, yaml.MappingNode):
            entries: dict[str, Any] = {}
            for key_node, value_node in node.value:
                at = key_node.start_mark.line + 1
                key = read_key(key_node, at)
                if key in entries:
                    raise PipelineFileError(f"{source}:{at}: {key!r} is given twice; remove one of them")
                entries[key] = read(value_node, f"{path}.{key}".removeprefix("."), at)
            return entries
        if isinstance(node, yaml.SequenceNode):
            return [
                read(item, f"{path}[{position}]", item.start_mark.line + 1) for position, item in enumerate(node.value)
            ]
        try:
            return constructor.construct_object(node, deep=True)
        except (yaml.YAMLError, ValueError) as error:
            raise PipelineFileError(f"{source}:{line}: cannot read {node.value!r}") from error

    def read_key(node: yaml.Node, line: int) -> str:
        if not isinstance(node, yaml.ScalarNode) or node.tag == "tag:yaml.org,2002:merge":
            raise PipelineFileError(f"{source}:{line}: a key must be a word")
        return str(node.value)

    return _Document(read(root, "", root.start_mark.line + 1), lines)
