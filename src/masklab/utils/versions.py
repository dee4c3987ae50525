"""Versions of the packages that affect results, read without importing them."""

from __future__ import annotations

import platform
from importlib.metadata import version

LIBRARIES = (
    "masklab",
    "torch",
    "torchvision",
    "timm",
    "lightning",
    "hotcoco",
    "numpy",
    "pillow",
    "tifffile",
    "safetensors",
)
"""Packages whose versions affect results."""


def versions() -> dict[str, str]:
    """The versions of `LIBRARIES` and of Python."""
    return {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()}
