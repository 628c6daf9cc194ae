"""How many layers a model has, from its configuration, before anything is started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controller.platform.llm_pipeline import InvalidPipeline, Problem
from runtime.model import ModelError, resolve_model

if TYPE_CHECKING:
    from controller.platform.llm_pipeline import LLMPipeline

# What the families of models call it.
_NAMES = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def count_layers(pipeline: LLMPipeline) -> int:
    """Return how many layers the pipeline's model has; the built-in model is made ready for that.

    Of a model on a hub, only the configuration is fetched, and only if the object does not say how many there are.

    Raises:
        InvalidPipeline: the model is not there, or nobody can say how many layers it has.

    """
    model = pipeline.spec.model
    if model.id and (known := pipeline.known_layers) is not None:
        return known
    try:
        file = _hub_file(model.id, model.revision) if model.id else Path(resolve_model(model.path).path, "config.json")
        return _layers_of(json.loads(file.read_text(encoding="utf-8")))
    except (ModelError, OSError, ValueError) as error:
        where = "spec.model.path" if model.path else "spec.model.layers" if model.id else "spec.model"
        hint = f"; how many layers {model.id} has cannot be looked up, so say it here" if model.id else ""
        raise InvalidPipeline([Problem(where, f"{error}{hint}")]) from error


def _hub_file(model: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(model, "config.json", revision=revision))


def _layers_of(configuration: Any) -> int:
    """Read the number from a Hugging Face configuration."""
    for part in (configuration, configuration.get("text_config") or {}):
        for name in _NAMES:
            if isinstance(layers := part.get(name), int):
                return layers
    raise ValueError(f"its config.json has none of {', '.join(_NAMES)}")
