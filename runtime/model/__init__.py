"""Where a model comes from: a hub id, a folder, or the built-in model, which needs neither hub nor account."""

from runtime.model.builtin import prepare_built_in
from runtime.model.errors import (
    CacheError,
    ChecksumError,
    ConversionError,
    DiskFullError,
    DownloadError,
    ModelError,
    ModelNameError,
)
from runtime.model.resolve import ResolvedModel, resolve_model

__all__ = [
    "CacheError",
    "ChecksumError",
    "ConversionError",
    "DiskFullError",
    "DownloadError",
    "ModelError",
    "ModelNameError",
    "ResolvedModel",
    "prepare_built_in",
    "resolve_model",
]
