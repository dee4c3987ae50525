"""Overlay: the image with its objects tinted and outlined, as PNG."""

from __future__ import annotations

from pathlib import Path

from masklab.results.formats.base import Format, Result
from masklab.results.pixels import ArrayImage, ImageReader
from masklab.utils.errors import InputError


def _write(path: Path, result: Result) -> None:
    from masklab.results.overlay import overlay

    shown = _shown(result)
    if isinstance(shown, ArrayImage):
        overlay(shown.values, result.instances, 0.0).save(path, "PNG")
    else:
        raise NotImplementedError


def _shown(result: Result) -> ImageReader:
    if result.shown is not None:
        return result.shown
    if result.image is None:
        raise InputError("an overlay needs the image: give it as image=, (C, H, W).")
    return result.image


OVERLAY = Format("overlay", ".png", "NAME.png: the image with the objects found drawn over it", _write, (".png",))
