"""Check of images: decoding, size, orientation, and images that occur twice."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from masklab.datasets.check.split import LenientSplit
from masklab.datasets.image_table import ImageRecord
from masklab.datasets.problems import without_path
from masklab.images.opened import ORIENTATION
from masklab.images.pillow import open_pillow
from masklab.images.read import image_size, read_image
from masklab.utils.errors import InputError
from masklab.utils.progress import track
from masklab.utils.types import Size

_WORKERS = 8  # images that are decoded at once, at most
_BLOCK = 2**20  # bytes
_LARGE_PIXELS = 2**24
_LARGE = Lock()  # held while a large image is decoded, so that several do not take their memory at once

Seen = dict[bytes, list[tuple[LenientSplit, ImageRecord, bytes]]]
"""The images of all splits by the digest of their pixels, with the digest of their files."""


def check_images(split: LenientSplit, images: Sequence[ImageRecord], seen: Seen) -> None:
    """Decode every image of a split and report its problems; ``seen`` collects the images of all splits."""
    with ThreadPoolExecutor(min(_WORKERS, os.cpu_count() or 1)) as pool:
        decoded = pool.map(_decode, [image.path for image in images])
        for image, digest in track(zip(images, decoded, strict=True), f"{split.name}: images", len(images)):
            if isinstance(digest, str):
                problem = "damaged image" if os.path.isfile(image.path) else "missing image"
                split.add(problem, without_path(digest, image.path), image.image_id)
            else:
                _check_size(split, image, digest)
                seen[digest.pixels].append((split, image, digest.file))


def _check_size(split: LenientSplit, image: ImageRecord, digest: _Digest) -> None:
    (height, width), orientation = digest.size, digest.orientation
    if digest.size != image.size:
        sizes = f"it is {width} x {height}, the JSON says {image.size[1]} x {image.size[0]}"
        if orientation >= 5 and image.size == (width, height):
            split.add("annotated as stored, before EXIF", f"{sizes}; EXIF turns it", image.image_id)
        else:
            split.add("other size than annotated", sizes, image.image_id)
    elif orientation in (2, 3, 4) or (orientation >= 5 and height == width):
        detail = f"EXIF turns it ({orientation}); make sure it was annotated upright"
        split.add("EXIF orientation", detail, image.image_id)


class _Digest(NamedTuple):
    """Digests of an image's file and of its pixels, its size upright and its EXIF orientation."""

    file: bytes
    pixels: bytes
    size: Size
    orientation: int


def _decode(path: Path) -> _Digest | str:
    """Decode a whole image; a sentence if it cannot be decoded.  Large images are decoded one at a time."""
    try:
        height, width = image_size(path)
        with _LARGE if height * width > _LARGE_PIXELS else nullcontext():
            return _digest(path)
    except InputError as error:
        return str(error)
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})."


def _digest(path: Path) -> _Digest:
    values = read_image(path, None)
    file = _file_digest(path)
    size = (values.shape[1], values.shape[2])
    digest = hashlib.blake2b(f"{values.shape} {values.dtype}".encode(), digest_size=16)
    digest.update(values.data.cast("B"))
    return _Digest(file, digest.digest(), size, _orientation(path))


def _file_digest(path: Path) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.digest()


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
        first: dict[str, tuple[ImageRecord, bytes]] = {}
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
