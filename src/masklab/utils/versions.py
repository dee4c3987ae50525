"""Which versions of which packages a result was made with.  Needs none of them."""

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
"""The packages whose versions matter to a result."""


def versions() -> dict[str, str]:
    """The versions of `LIBRARIES` and of Python."""
    return {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()}
