"""Images that are embedded in the JSON files of labelme, as base64 text in the field ``imageData``."""

from __future__ import annotations

import base64
import io
import os
import shutil
from pathlib import Path

from PIL import Image

from masklab.images.opened import is_zarr
from masklab.utils.errors import InputError
from masklab.utils.files import read_json

EMBEDDED_SUFFIX = ".json"
_MAX_BYTES = 2**28  # of the JSON file


def is_embedded(path: Path) -> bool:
    """Whether a path of an image is that of a JSON file which it is embedded in."""
    return path.suffix.lower() == EMBEDDED_SUFFIX


def embedded_bytes(path: Path) -> bytes:
    """The image file that is embedded in a JSON file; raises `InputError` naming it where there is none."""
    if os.path.getsize(path) > _MAX_BYTES:
        raise InputError(f"{path} has more than {_MAX_BYTES // 2**20} MiB: put the image beside it as a file.")
    values = read_json(path)
    data = values.get("imageData") if isinstance(values, dict) else None
    if not isinstance(data, str) or not data:
        raise InputError(f"{path} is not an image that can be read: it has no imageData.")
    return base64.b64decode(data)


def stored_suffix(path: Path) -> str:
    """The suffix of an image file, or that of the format of an embedded image."""
    if not is_embedded(path):
        return path.suffix
    with Image.open(io.BytesIO(embedded_bytes(path))) as image:
        return {"JPEG": ".jpg", "TIFF": ".tif"}.get(image.format or "", f".{image.format}".lower())


def copy_image(source: Path, target: Path) -> None:
    """Copy an image file or folder, or write the one that is embedded in a JSON file."""
    if is_embedded(source):
        target.write_bytes(embedded_bytes(source))
    elif is_zarr(source):
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)
