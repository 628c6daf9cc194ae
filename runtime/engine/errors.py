"""What can go wrong between Midstream and the engine it drives.

::

    EngineError
    +-- UnsupportedEngine      the installed vLLM is not one that was tested
    +-- UnsupportedFeature     the model or a setting cannot run as a movable pipeline (invariant I7)
    +-- StageError             a stage process failed, rejected a call or is gone
"""


class EngineError(RuntimeError):
    """Base of all errors of this room."""


class UnsupportedEngine(EngineError):
    """The installed vLLM is missing, broken or not one that was tested."""


class UnsupportedFeature(EngineError):
    """A model or setting that cannot be carried over a change; refused at start, never silently dropped."""


class StageError(EngineError):
    """A stage process failed, rejected a call, or is gone."""
