"""Which table an experiment is for, as it is written in the file."""

from typing import Annotated, Literal

from pydantic import Field

from loadgen.experiments.strict import Name, Strict


class StaticAgainstDynamic(Strict):
    """The seed paper's table: what a change costs, against staying as one is and against stopping and starting.

    Attributes:
        before, after: Arms that keep the layout before and after the change.
        dynamic: Arm that changes from one to the other live.
        restart: Arm that stops and starts.
    """

    kind: Literal["static_against_dynamic"]
    before: Name = "static-a"
    after: Name = "static-b"
    dynamic: Name = "dynamic"
    restart: Name = "restart"


class WaysToChange(Strict):
    """One row for each arm with a change in it.

    Attributes:
        quiet: Arm without a change, for the noise that the definition of a pause yields by itself.
    """

    kind: Literal["ways_to_change"]
    quiet: Name | None = None


class Growth(Strict):
    """Pause and total time of a change over the KV that it finds, with the fitted slope.

    Attributes:
        groups: Beginnings of arms' names that are fitted each by itself; the empty one is all.
    """

    kind: Literal["growth"]
    groups: Annotated[tuple[str, ...], Field(min_length=1)] = ("",)


Analysis = Annotated[StaticAgainstDynamic | WaysToChange | Growth, Field(discriminator="kind")]


def arms_named(analysis: StaticAgainstDynamic | WaysToChange | Growth) -> dict[str, str]:
    """Return the arms that an analysis needs, by the name of its field."""
    match analysis:
        case StaticAgainstDynamic(before=before, after=after, dynamic=dynamic, restart=restart):
            return {"before": before, "after": after, "dynamic": dynamic, "restart": restart}
        case WaysToChange(quiet=str(quiet)):
            return {"quiet": quiet}
        case _:
            return {}
