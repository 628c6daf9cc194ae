"""All kinds of workloads, as one discriminated union over `kind`.

    closed     a fixed number of users, one request at a time each
    open       requests arrive by a rate, however busy the server is
    sessions   conversations of several turns, each carrying the earlier ones
    trace      the arrivals and lengths of a recorded trace
    phases     the above one after another

`Workload` is a field type for descriptions that hold a workload; `parse_workload` reads one on its own.
"""

from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from loadgen.errors import OptionsError
from loadgen.workloads.closed_loop import ClosedLoop
from loadgen.workloads.configuration import explain
from loadgen.workloads.open_loop import OpenLoop
from loadgen.workloads.phases import Phases
from loadgen.workloads.sessions import Sessions
from loadgen.workloads.trace_replay import TraceReplay

Workload = Annotated[ClosedLoop | OpenLoop | Sessions | TraceReplay | Phases, Field(discriminator="kind")]

_ADAPTER: TypeAdapter[Workload] = TypeAdapter(Workload)


def parse_workload(document: object, at: str = "workload") -> Workload:
    """Return the workload that a document (of YAML, JSON or the command line) describes.

    Raises:
        OptionsError: it describes none; one line per mistake, each with the path of its field below `at`.
    """
    try:
        return _ADAPTER.validate_python(document)
    except ValidationError as error:
        raise OptionsError(explain(error, document, at)) from None


def workload_schema() -> dict[str, Any]:
    """Return the JSON schema of a workload."""
    return _ADAPTER.json_schema()
