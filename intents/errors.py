"""What can go wrong with intents, as one tree.

    IntentsError
    ├── InventoryError     a snapshot cannot be read: the message names the file, the field and what to do
    ├── IntentFormatError  a typed intent cannot be read
    ├── TranslatorError    a translator could not be asked (no endpoint, no answer in time)
    ├── BenchmarkError     a file of the benchmark contradicts itself (in `intents.benchmark.cases`)
    └── EnforcementError   a controller or an API server could not be told, or answered outside its contract

That a sentence is refused is *not* an exception: it is a result, `intents.model.refusal.Refusal`.
"""


class IntentsError(Exception):
    """Base of everything this package raises on purpose."""


class InventoryError(IntentsError):
    """An inventory is not readable or contradicts itself."""


class IntentFormatError(IntentsError):
    """A typed intent has a field that it must not have, or lacks one."""


class TranslatorError(IntentsError):
    """A translator could not be asked."""


class EnforcementError(IntentsError):
    """What enforces could not be reached, or answered outside its contract."""
