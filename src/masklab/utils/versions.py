"""Versions of the packages that affect results, read without importing them."""

from __future__ import annotations

import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

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
    """The versions of Python and of those of `LIBRARIES` that are installed: exported models run without most."""
    found = {}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found | {"python": platform.python_version()}
