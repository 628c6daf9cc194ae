"""The base of everything that is written in an experiment's file."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Strict(BaseModel):
    """A part of the file: a field that is not known is a mistake, and nothing changes once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Moment = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([a-z0-9._-]*[a-z0-9])?$")]
Word = Annotated[str, Field(min_length=1, max_length=200)]
