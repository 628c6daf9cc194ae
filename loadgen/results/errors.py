"""Errors of run folders.

```text
LoadgenError
└── ResultsError         a run folder that is not one, is damaged, or cannot be written
    └── NotComparable    two runs of which no ratio would mean anything
```
"""

from loadgen.errors import LoadgenError


class ResultsError(LoadgenError):
    """A run folder is missing, damaged, of another version, or cannot be written."""


class NotComparable(ResultsError):
    """A ratio of these two runs would mean nothing."""
