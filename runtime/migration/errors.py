"""Why a change is not made.

::

    ChangeError
    +-- ChangeRefused      the plan was checked and does not work; nothing was touched
    |   +-- ChangeUnneeded     the pipeline has that layout already
    |   +-- ChangeSuperseded   it was asked for by an older generation than one accepted before
    |   +-- LastStage          a stage cannot leave: no other stage is there to take its layers
    |   +-- ChangeForbidden    an active intent forbids it (I5)
    |   +-- NotNow             refused for the moment; ask again
    |       +-- PipelineAsleep     it sleeps and does not wake in time
    |       +-- GuardAsked         the guard of the intents is being asked
    |       +-- GuardSilent        the guard cannot be asked, or does not answer: nothing is allowed then
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


class ChangeForbidden(ChangeRefused):
    """An active intent forbids where something would be, or the way there (I5)."""


class NotNow(ChangeRefused):
    """Nothing is decided: the same request may be made again."""


class PipelineAsleep(NotNow):
    """The pipeline sleeps and did not wake in time."""


class GuardAsked(NotNow):
    """The guard of the intents is being asked; there is an answer in a moment."""


class GuardSilent(NotNow):
    """The guard of the intents could not be asked, or did not answer; nothing is allowed without its word."""


class ChangeBusy(ChangeError):
    """Another change is under way."""

    def __init__(self, change: str) -> None:
        super().__init__(f"{change} is under way; wait for it to end (midstream status), then try again")
        self.change = change


class ChangeUnknown(ChangeError):
    """No change of that id is known."""


class NotMovableError(ChangeError):
    """A request holds state that cannot be carried over and did not let go of it in time."""
