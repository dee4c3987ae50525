"""PNG files of figures."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from masklab.utils.files import atomic_write


def save_png(image: Image.Image, path: Path) -> Path:
    """Write a figure as a PNG, atomically, and print its path; returns the path."""
    with atomic_write(path) as temporary:
        image.save(temporary, "PNG")
    print(f"written: {path} ({image.width} x {image.height})")
    return path
