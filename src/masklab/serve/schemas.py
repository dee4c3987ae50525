"""Bodies and answers of the server, as its description (OpenAPI) has them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from masklab.serve.answers import DOCUMENT, KINDS
from masklab.serve.bodies import IMAGE_TYPES
from masklab.serve.refusals import SENTENCES


class Problem(BaseModel):
    """Why a request was refused."""

    error: str = Field(description="One sentence that says what is wrong and what to do.")


class Health(BaseModel):
    """Whether the server takes work."""

    status: str


class ImageSize(BaseModel):
    """Of an image, in pixels."""

    height: int
    width: int


class FoundObject(BaseModel):
    """An object of an image; it has ``segmentation`` or ``polygons``."""

    object: int = Field(description="Its number among all detections of the image, best first.")
    class_: str = Field(alias="class")
    category_id: int = Field(description="The class's id in the data that the model was trained on.")
    label: int = Field(description="The class's number, from 0.")
    score: float
    box: list[float] = Field(description="x1, y1, x2, y2 in pixels.", min_length=4, max_length=4)
    area: int = Field(description="Pixels of the mask.")
    segmentation: dict[str, Any] | None = Field(default=None, description="COCO's run lengths.")
    polygons: list[list[list[int]]] | None = Field(
        default=None,
        description="Parts, each a list of rings, the outer one first: x, y, x, y, ... along pixels' edges.",
    )


class Document(BaseModel):
    """The objects of an image."""

    name: str
    threshold: float = Field(description="The score from which the model's objects count as found.")
    result: str | None = Field(description="Under which the result is kept, if that was asked for.")
    warnings: list[str]
    size: ImageSize
    objects: list[FoundObject]


class ServedFormat(BaseModel):
    """A format of answers."""

    name: str
    media_type: str
    ending: str
    holds: str


class ServedModel(BaseModel):
    """The model, and what the server takes and gives."""

    name: str
    version: str
    classes: list[str]
    colours: list[str] = Field(description="A colour for each class and, round again, each object.")
    threshold: float
    formats: list[ServedFormat]
    layers: list[str]
    no_layers: str = Field(description="Why there are no layers; empty where there are.")
    max_bytes: int
    max_pixels: int
    tile: int = Field(description="Side of a tile of a picture.")


def _whole(value: Any) -> Any:
    """JSON knows one kind of number: 3.0 is the integer 3."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class Choice(BaseModel):
    """Objects of a kept result."""

    model_config = ConfigDict(extra="forbid")
    objects: list[Annotated[int, Field(strict=True, ge=0), BeforeValidator(_whole)]] | None = Field(
        default=None, description="Their numbers; all of them by default.", max_length=1_000_000
    )


PROBLEM = {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
IMAGE_BODY = {
    "required": True,
    "description": "The bytes of one image file; its content says what format it is.",
    "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in IMAGE_TYPES},
}


TEXT = {"description": "Figures.", "content": {"text/plain": {"schema": {"type": "string"}}}}


def answers(good: dict[str, Any] | None, *refused: int) -> dict[int | str, dict[str, Any]]:
    """The answers of a route, for its description: a good one, unless its type says it, and refusals."""
    bad: dict[int | str, dict[str, Any]] = {
        status: {"model": Problem, "description": SENTENCES[status]} for status in refused
    }
    return bad if good is None else {200: good, **bad}


def answered() -> dict[str, Any]:
    """All kinds of answers, for the description of a route."""
    content: dict[str, Any] = {
        kind: {"schema": {"type": "string", "format": "binary"}} for kind in KINDS if kind != DOCUMENT
    }
    return {"model": Document, "description": "The objects, in the format that `Accept` asks for.", "content": content}


def pictured() -> dict[str, Any]:
    """A picture, for the description of a route."""
    return {"description": "A picture.", "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}
