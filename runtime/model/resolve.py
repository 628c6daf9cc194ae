"""Decides what `--model M` means.

    nothing          the built-in model, prepared on first use
    a folder         used as it is, when it has a config.json
    owner/name       a hub id, left to vLLM, which downloads and caches it; no network is touched here

An existing folder wins over a hub id of the same spelling, as everywhere in the Hugging Face libraries.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from runtime.model.builtin import BUILT_IN, prepare_built_in
from runtime.model.errors import ModelNameError

_HUB_ID = re.compile(r"(?:\w[\w.-]*/)?\w[\w.-]*", re.ASCII)
_CHOICES = "Give a hub id (owner/name), a folder in Hugging Face format, or leave --model out for the built-in model."


@dataclass(frozen=True)
class ResolvedModel:
    """A model as vLLM and its clients name it."""

    path: str
    """What vLLM loads: an absolute folder, or a hub id."""
    served_name: str
    """What clients put into `model`."""
    origin: Literal["built-in", "folder", "hub"]


def resolve_model(
    model: str | None,
    *,
    cache_dir: Path | None = None,
    prepare: Callable[[Path | None], Path] = prepare_built_in,
) -> ResolvedModel:
    """Return what `model` stands for; None is the built-in model, which `prepare` makes ready in `cache_dir`.

    Raises:
        ModelNameError: `model` is empty, a path without a model, or no possible hub id.
        ModelError: the built-in model could not be prepared.
    """
    if model is None:
        return ResolvedModel(str(prepare(cache_dir)), BUILT_IN.name, "built-in")
    if not model.strip():
        raise ModelNameError(f"the model name is empty ({model!r}). {_CHOICES}")
    folder = Path(os.path.abspath(os.path.expanduser(model)))  # Unlike Path.absolute it resolves "..": names matter.
    try:
        found = folder.exists()
    except OSError as error:
        raise ModelNameError(f"cannot look up the model {model!r}: {error}. {_CHOICES}") from error
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelNameError(f"the folder {folder} is no model: it has no config.json. {_CHOICES}")
        return ResolvedModel(str(folder), folder.name, "folder")
    if found:
        raise ModelNameError(f"{folder} is a file, not a model folder. {_CHOICES}")
    if model.startswith((".", os.sep, "~")) or model.count(os.sep) > 1:
        raise ModelNameError(f"there is no folder {folder} (given as {model!r}). {_CHOICES}")
    if not _HUB_ID.fullmatch(model):
        raise ModelNameError(f"{model!r} is neither an existing folder nor a possible hub id. {_CHOICES}")
    return ResolvedModel(model, model, "hub")
