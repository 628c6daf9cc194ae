"""What can go wrong while measuring, as one tree.

    LoadgenError
    ├── OptionsError          the experiment was asked for something that makes no sense
    ├── ServerError           a server process under test
    │   ├── ServerDiedError       it ended although it should be running
    │   └── ServerNotReadyError   it lives but did not become healthy in time
    ├── LinkError             the link between two machines could not be made here
    ├── ControlError          the control API of a Midstream server
    │   ├── ChangeRefusedError    the server answered that it will not make the change
    │   └── ChangeFailedError     the change was started and did not end as it should
    └── MeasurementError      there is not enough to measure: a figure would be a guess

A stream that breaks is *not* an exception: it is a result, and `loadgen.records.StreamRecord` says how it ended.
"""


class LoadgenError(Exception):
    """Base of everything this package raises on purpose."""


class OptionsError(LoadgenError):
    """An experiment's options contradict each other or lie outside their range."""


class ServerError(LoadgenError):
    """A server process could not be started, watched or stopped."""


class ServerDiedError(ServerError):
    """A server process ended although it should be running; the message carries its last log lines."""


class ServerNotReadyError(ServerError):
    """A server process lives but did not answer its health check before the deadline."""


class LinkError(LoadgenError):
    """A link with a given rate could not be made or measured; the message says what is missing."""


class ControlError(LoadgenError):
    """The control API could not be reached or gave an answer outside its contract."""


class ChangeRefusedError(ControlError):
    """The server refused a reconfiguration (409: another one runs; 422: the plan is not possible)."""


class ChangeFailedError(ControlError):
    """A reconfiguration was aborted, did not end before the deadline, or left another layout than asked for."""


class MeasurementError(LoadgenError):
    """The streams did not yield what a figure needs, for example because they broke before the change began."""
