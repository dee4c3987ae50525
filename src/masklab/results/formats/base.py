"""Interface of the formats that results are written in.

A format is one file here with one `Format`, listed in `masklab.results.formats.registry`.  These modules import heavy
libraries where they use them, so that the command line can list the formats at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from masklab.results.pixels import ImageReader
from masklab.utils.errors import InputError
from masklab.utils.extras import installed
from masklab.utils.words import listed

if TYPE_CHECKING:
    from masklab.results.instances import Instances


class Entries(NamedTuple):
    """The objects of an image as COCO's results describe them, with ``file_name`` and ``category_name``, and their labels."""

    entries: list[dict[str, Any]]
    labels: list[int]


class Result(NamedTuple):
    """What was found in an image, with all that a format may write of it.

    ``image`` has the image's own values, ``shown`` uint8 ``(3, H, W)`` to look at; ``pixel_size`` is the
    (height, width) of a pixel in micrometres.  Each is None where it is not known.
    """

    instances: Instances
    file_name: str = ""
    image: ImageReader | None = None
    shown: ImageReader | None = None
    pixel_size: tuple[float, float] | None = None


class Format(NamedTuple):
    """A format that results are written in.

    ``write(path, result)`` writes one image's.  In a folder of results, its file is called like the image, with
    ``ending``, unless there is ``combine(path, images)``, which writes the entries of all images into the one file
    ``combined``.  ``every`` says that a folder's results hold every detection, not only those of at least the threshold.
    ``measures`` says that the image's own values or the size of its pixels are used, ``packages`` what must be installed besides masklab;
    ``media_type`` is its name in HTTP.
    """

    name: str
    ending: str
    holds: str
    write: Callable[[Path, Result], None]
    suffixes: tuple[str, ...]
    combined: str | None = None
    combine: Callable[[Path, Iterable[Entries]], None] | None = None
    every: bool = False
    measures: bool = False
    packages: tuple[str, ...] = ()
    media_type: str = "application/octet-stream"


def check_packages(format: Format) -> None:
    """Raise `InputError` where a package that a format needs is not installed."""
    missing = [name for name in format.packages if not installed(name)]
    if missing:
        raise InputError(
            f"the format {format.name} needs {listed(missing)}, which is not installed: "
            'pip install "masklab[results]", or choose another format.'
        )


def entries(instances: Instances, file_name: str, image_id: int | str | None = None) -> Entries:
    """The objects as entries of a COCO results file; the id of the image is its file's name, unless it has one."""
    found = instances.to_coco(file_name if image_id is None else image_id)
    labels = instances.labels.tolist()
    for entry, label in zip(found, labels, strict=True):
        entry |= {"file_name": file_name, "category_name": instances.class_names[label]}
    return Entries(found, labels)


def json_list(values: Iterable[Any]) -> Iterator[str]:
    """The text of ``json.dumps(list(values))``, piece by piece."""
    separator = "["
    for value in values:
        yield separator + json.dumps(value)
        separator = ", "
    yield "[]" if separator == "[" else "]"
