"""What a pipeline is called in events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

PIPELINE_VARIABLE: Final = "MIDSTREAM_PIPELINE"


def pipeline_name(environment: Mapping[str, str]) -> str:
    """Return the name of the pipeline that this process belongs to."""
    return environment.get(PIPELINE_VARIABLE) or "default"
