"""PNG files of figures."""

from __future__ import annotations

import logging
from pathlib import Path

from PIL import Image

from masklab.utils.files import atomic_write

_log = logging.getLogger(__name__)


def save_png(image: Image.Image, path: Path) -> Path:
    """Write a figure as a PNG, atomically, and log its path; returns the path."""
    with atomic_write(path) as temporary:
        image.save(temporary, "PNG")
    _log.info("written: %s (%d x %d)", path, image.width, image.height)
    return path
