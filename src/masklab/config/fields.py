"""What the sections of the configuration have in common: their base class, ranges of numbers, "auto"."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from masklab.utils.errors import InputError
from masklab.utils.types import Auto

Positive = Field(gt=0)
Count = Annotated[int, Field(ge=1)]
Above0 = Annotated[float, Field(gt=0, allow_inf_nan=False)]
T = TypeVar("T")

VAL_FRACTION = 0.2  # of the images are held out as val where a data set does not say which


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True, use_attribute_docstrings=True, frozen=True)


def resolved(value: T | Auto, field: str) -> T:
    """The value of a field that may be "auto", once training has put a number there; `InputError` before."""
    if value == "auto":
        raise InputError(
            f"{field} is auto, which only `masklab train` can settle, from the training images: give a value instead."
        )
    return value
