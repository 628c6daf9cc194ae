"""What can go wrong between a workload's description and its requests, as one tree.

loadgen.errors.LoadgenError
├── OptionsError      the description makes no sense (of `loadgen.errors`: the same for every experiment)
└── WorkloadError
    ├── TraceError        a trace file cannot be read, or has a row that it should not have
    └── PromptError       a prompt of the wanted length cannot be made with this tokenizer
"""

from loadgen.errors import LoadgenError


class WorkloadError(LoadgenError):
    """A workload that is well described cannot be turned into requests."""


class TraceError(WorkloadError):
    """A trace cannot be replayed; the message names the file and, where there is one, the line."""


class PromptError(WorkloadError):
    """A tokenizer cannot be had, or cannot make a prompt of the wanted length."""
