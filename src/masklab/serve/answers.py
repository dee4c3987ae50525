"""What is answered about the objects of an image: a JSON document, or a file of any format of results."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from masklab.images.rescaled import ImageIntensities
from masklab.inference.finder import ObjectFinder
from masklab.masks import rle
from masklab.results.formats.base import Format, Result, check_packages
from masklab.results.formats.registry import FORMATS
from masklab.results.instances import Instances
from masklab.results.pixels import as_pixel_size, as_reader
from masklab.serve.images import SentImage, open_sent
from masklab.serve.refusals import Refusal
from masklab.serve.worker import Order
from masklab.utils.errors import InputError

DOCUMENT = "application/json"
_MOST_RANGES = 64  # of media types in a header


class Asked(NamedTuple):
    """A kind of answer: its media type, and the format that writes it, None for the document."""

    media_type: str
    format: Format | None


KINDS = {DOCUMENT: Asked(DOCUMENT, None)} | {each.media_type: Asked(each.media_type, each) for each in FORMATS.values()}
"""All kinds of answers by media type; of several that fit a request equally well it gets the first."""


def asked_for(accept: str | None) -> Asked:
    """The kind of answer that a header ``Accept`` wants most; `Refusal` where there is none."""
    ranges = [_range(part) for part in (accept or "*/*").split(",")[:_MOST_RANGES]]
    best = max(KINDS, key=lambda kind: _wanted(kind, ranges))
    if not _wanted(best, ranges):
        raise Refusal(406, f"the header Accept names nothing that can be written: ask for {', '.join(KINDS)}.")
    asked = KINDS[best]
    if asked.format is not None:
        try:
            check_packages(asked.format)
        except InputError:
            raise Refusal(406, f"this server lacks a package to write {best}: ask for another format.") from None
    return asked


def _range(text: str) -> tuple[str, float]:
    """A media type with wildcards, and how much it is wanted, 0 to 1."""
    name, *parameters = (part.strip() for part in text.lower().split(";"))
    weight = next((value[2:] for value in parameters if value.startswith("q=")), "1")
    try:
        return name, min(max(float(weight), 0.0), 1.0)
    except ValueError:
        return name, 0.0


def _wanted(kind: str, ranges: list[tuple[str, float]]) -> float:
    """How much a media type is wanted: as the most specific range says that it is in."""
    for name in (kind, f"{kind.partition('/')[0]}/*", "*/*"):
        given = [weight for found, weight in ranges if found == name]
        if given:
            return max(given)
    return 0.0


def document(found: Instances, rows: Sequence[int], outlines: bool, about: dict[str, Any]) -> bytes:
    """The objects of some ``rows`` of a result as JSON, with what else is told ``about`` the image.

    Their masks are run lengths as in COCO's files, or, as ``outlines``, polygons: each a list of rings, the outer one first and then
    its holes, and a ring the numbers x, y, x, y, ... in pixels along the edges of pixels.
    """
    masks: dict[str, list[Any]]
    if outlines:
        masks = {"polygons": [[[ring.ravel().tolist() for ring in part] for part in each] for each in found.polygons()]}
    else:
        masks = {"segmentation": found.rles()}
    objects = [
        {
            "object": row,
            "class": found.class_names[label],
            "category_id": int(found.category_ids[label]),
            "label": label,
            "score": score,
            "box": box,
            "area": int(rle.area(mask)),
            **{name: values[n] for name, values in masks.items()},
        }
        for n, (row, label, score, box, mask) in enumerate(
            zip(rows, found.labels.tolist(), found.scores.tolist(), found.boxes.tolist(), found.rle, strict=True)
        )
    ]
    size = {"height": found.size[0], "width": found.size[1]}
    return json.dumps({**about, "size": size, "objects": objects}, allow_nan=False).encode()


def written(
    format: Format,
    found: Instances,
    path: Path,
    name: str,
    finder: ObjectFinder,
    order: Order,
    image: SentImage | None = None,
) -> bytes:
    """A file of a format, as `masklab predict` writes it for an image called ``name`` that lies at ``path``.

    ``image`` is that image where it is open already, as the model takes it.  Raises `InputError` as formats do.
    """
    target = path.with_name(secrets.token_hex(12))
    try:
        with ExitStack() as stack:
            own = shown = None
            if format.measures:
                own = stack.enter_context(open_sent(path, None, order))
            if format.name == "overlay":
                channels = finder.config.model.backbone.channels
                image = image or stack.enter_context(open_sent(path, channels, order))
                shown = ImageIntensities(image, finder.image_config).shown()
            sides = as_pixel_size(None if own is None else own.pixel_size)
            format.write(target, Result(found, name, as_reader(own, found.size), as_reader(shown, found.size), sides))
        return target.read_bytes()
    finally:
        target.unlink(missing_ok=True)
