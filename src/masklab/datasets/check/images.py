"""Check of images: decoding, size, orientation, and images that occur twice."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from masklab.datasets.check.split import LenientSplit
from masklab.datasets.image_table import ImageRecord
from masklab.datasets.plausibility import Look, look_at
from masklab.datasets.problems import Problem, Sink, without_path
from masklab.images.opened import ORIENTATION, stored_files
from masklab.images.pillow import open_pillow
from masklab.images.read import read_image
from masklab.utils.errors import InputError

_BLOCK = 2**20  # bytes


class Digest(NamedTuple):
    """Digests of an image's file and of its pixels, as hexadecimal numbers."""

    file: str
    pixels: str


Seen = dict[str, list[tuple[LenientSplit, ImageRecord, str]]]
"""The images of all splits by the digest of their pixels, with the digest of their files."""


def check_image(image: ImageRecord, sink: Sink) -> tuple[Digest, Look] | None:
    """Decode a whole image and report its problems; None if it cannot be decoded."""
    try:
        values = read_image(image.path, None)
        file = _file_digest(image.path)
    except (InputError, OSError) as error:
        problem = "damaged image" if os.path.exists(image.path) else "missing image"
        reason = f"cannot be read ({error.strerror})." if isinstance(error, OSError) else str(error)
        sink.report(Problem(problem, without_path(reason, image.path), image.image_id))
        return None
    pixels = hashlib.blake2b(f"{values.shape} {values.dtype}".encode(), digest_size=16)
    pixels.update(values.data.cast("B"))
    height, width = values.shape[1:]
    _check_size(image, (height, width), _orientation(image.path), sink)
    return Digest(file, pixels.hexdigest()), look_at(values, (height, width))


def _check_size(image: ImageRecord, size: tuple[int, int], orientation: int, sink: Sink) -> None:
    height, width = size
    if size != image.size:
        detail = f"it is {width} x {height}, the JSON says {image.size[1]} x {image.size[0]}"
        as_stored = orientation >= 5 and image.size == (width, height)
        problem = "annotated as stored, before EXIF" if as_stored else "other size than annotated"
        sink.report(Problem(problem, f"{detail}; EXIF turns it" if as_stored else detail, image.image_id))
    elif orientation in (2, 3, 4) or (orientation >= 5 and height == width):
        detail = f"EXIF turns it ({orientation}); make sure it was annotated upright"
        sink.report(Problem("EXIF orientation", detail, image.image_id))


def _file_digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in stored_files(path):
        with open(part, "rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()


def _orientation(path: Path) -> int:
    """The EXIF orientation, 1 (upright) to 8; 1 where there is none."""
    try:
        with open_pillow(path) as opened:
            value = opened.getexif().get(ORIENTATION, 1)
    except Exception:  # the image was read; if Pillow cannot, there is no EXIF either
        return 1
    return value if value in range(1, 9) else 1


def compare_images(seen: Seen) -> None:
    """Report images that occur twice, in one split or in two."""
    for group in seen.values():
        first: dict[str, tuple[ImageRecord, str]] = {}
        for split, image, file in group:
            if split.name in first:
                name, problem, place = split.name, "duplicate image", ""
            elif first:
                name = next(iter(first))
                problem, place = "image in two splits", f" in {name}"
            else:
                first[split.name] = (image, file)
                continue
            other, other_file = first[name]
            detail = f"{_sameness(image, other, file == other_file)}{place} (image {other.image_id})"
            split.add(problem, detail, image.image_id)
            first.setdefault(split.name, (image, file))


def _sameness(image: ImageRecord, other: ImageRecord, same_bytes: bool) -> str:
    if image.path == other.path:
        return "the same file"
    return f"the same {'bytes' if same_bytes else 'pixels'} as {other.path.name}"
