"""Why a change is not made.

::

    ChangeError
    +-- ChangeRefused      the plan was checked and does not work; nothing was touched
    |   +-- ChangeUnneeded     the pipeline has that layout already
    |   +-- ChangeSuperseded   it was asked for by an older generation than one accepted before
    |   +-- LastStage          a stage cannot leave: no other stage is there to take its layers
    |   +-- PipelineAsleep     it sleeps and does not wake in time
    +-- ChangeBusy         another change is under way; carries its id
    +-- ChangeUnknown      no change of that id
    +-- NotMovableError    a request holds state that cannot be carried over (I7); the change is aborted
"""


class ChangeError(RuntimeError):
    """Base of all errors of this room."""


class ChangeRefused(ChangeError):
    """The plan does not work; nothing was touched."""


class ChangeUnneeded(ChangeRefused):
    """The pipeline has the wanted layout already."""


class ChangeSuperseded(ChangeRefused):
    """An older generation asks than one that was accepted before."""


class LastStage(ChangeRefused):
    """No other stage is there to take the layers of the one that wants to leave."""


class PipelineAsleep(ChangeRefused):
    """The pipeline sleeps and did not wake in time."""


class ChangeBusy(ChangeError):
    """Another change is under way."""

    def __init__(self, change: str) -> None:
        super().__init__(f"{change} is under way; wait for it to end (midstream status), then try again")
        self.change = change


class ChangeUnknown(ChangeError):
    """No change of that id is known."""


class NotMovableError(ChangeError):
    """A request holds state that cannot be carried over and did not let go of it in time."""
