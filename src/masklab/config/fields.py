"""Base class and common types of the configuration's sections."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from masklab.utils.errors import InputError
from masklab.utils.types import Auto

# Upper limits are far above what anyone wants: they refuse a slip of the finger, and a header that asks for terabytes.
MOST_COUNTED = 100_000
"""Largest number of objects, proposals and the like of an image."""
Count = Annotated[int, Field(ge=1, le=MOST_COUNTED)]
Above0 = Annotated[float, Field(gt=0, le=1e6)]
Dilation = Annotated[int, Field(ge=1, le=1000)]
MOST_PIXELS = 32_768
"""Largest side of the network's input."""
T = TypeVar("T")

DEEP_PERCENTILES = (0.1, 99.9)  # black and white of images of more than 8 bits, whose range is seldom full
VAL_FRACTION = 0.2  # fraction of the images that is split off as val if a data set has no val of its own


class Section(BaseModel):
    """Frozen section of the configuration; the docstring of a field is its help on the command line."""

    model_config = ConfigDict(extra="forbid", validate_default=True, use_attribute_docstrings=True, frozen=True)


def resolved(value: T | Auto, field: str) -> T:
    """The value of a field that training has resolved; raises `InputError` if it is still "auto"."""
    if value == "auto":
        raise InputError(
            f"{field} is auto, which only `masklab train` can resolve, from the training images: give a value instead."
        )
    return value
