"""Why a change is not made.

::

    ChangeError
    +-- ChangeRefused      the plan was checked and does not work; nothing was touched
    +-- ChangeBusy         another change is under way; carries its id
    +-- ChangeUnknown      no change of that id
    +-- NotMovableError    a request holds state that cannot be carried over (I7); the change is aborted
"""


class ChangeError(RuntimeError):
    """Base of all errors of this room."""


class ChangeRefused(ChangeError):
    """The plan does not work; nothing was touched."""


class ChangeBusy(ChangeError):
    """Another change is under way."""

    def __init__(self, change: str) -> None:
        super().__init__(f"{change} is under way; wait for it to end (midstream status), then try again")
        self.change = change


class ChangeUnknown(ChangeError):
    """No change of that id is known."""


class NotMovableError(ChangeError):
    """A request holds state that cannot be carried over and did not let go of it in time."""
