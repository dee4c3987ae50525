"""Pictures: reading any common kind as ``(C, H, W)`` uint8, and making the network's input of them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from masklab.config import PictureConfig
from masklab.errors import InputError

Size = tuple[int, int]
T = TypeVar("T", bound=Tensor)

PICTURE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".jp2", ".ppm", ".pgm"}
)
TIFF_SUFFIXES = frozenset({".tif", ".tiff"})
LUMA = np.array([0.299, 0.587, 0.114])
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, struct.error, zlib.error)


def read_picture(path: str | Path, channels: int) -> NDArray[np.uint8]:
    """Read a picture as ``(channels, H, W)`` uint8, upright.

    The EXIF orientation is applied.  Grey, palette and transparent pictures become RGB for 3 channels
    and grey for 1; any other number must be the file's own.  Pictures of more than 8 bits are stretched
    so that their 0.1 % and 99.9 % quantiles become 0 and 255, all channels of an RGB picture together
    and those of any other each on its own: the full range of 16 bits is seldom used.

    Raises `InputError` naming the file when it is missing, is damaged, is not a picture or has another
    number of channels.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no such picture file; correct the path or restore the file.")
    try:
        values = _read_tiff(path) if path.suffix.lower() in TIFF_SUFFIXES else _read_pillow(path, channels)
    except UnidentifiedImageError:
        raise InputError(f"{path} is not a picture that can be read; convert it to PNG, JPEG or TIFF.") from None
    except Image.DecompressionBombError:
        raise InputError(f"{path} has too many pixels to be read as {path.suffix}; convert it to TIFF.") from None
    except DAMAGED as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise InputError(f"{path} is damaged or cut off ({reason}); replace the file.") from None
    return _fit_channels(_to_bytes(values, path), channels, path)


def list_pictures(path: str | Path) -> list[Path]:
    """The picture itself if ``path`` is a file, else the pictures directly inside the folder, by name.

    Raises `InputError` when there is nothing at ``path`` or the folder holds no picture.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"{path}: there is no such picture or folder; correct the path.")
    found = sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES and p.is_file())
    if not found:
        raise InputError(f"{path} holds no picture ({', '.join(sorted(PICTURE_SUFFIXES))}); name another folder.")
    return found


def _read_pillow(path: Path, channels: int) -> NDArray[Any]:
    """Decode with Pillow: ``(H, W, C)``, 8 bits or more."""
    with Image.open(path) as opened:
        picture = ImageOps.exif_transpose(opened)
        if picture.mode[0] in "IF":
            return np.asarray(picture)[:, :, None]
        if channels == 1:
            picture = picture.convert("L")
        elif channels == 3 or picture.mode not in ("LA", "RGBA", "CMYK"):
            picture = picture.convert("RGB")
        values = np.asarray(picture)
    return values[:, :, None] if values.ndim == 2 else values


def _read_tiff(path: Path) -> NDArray[Any]:
    """Decode with tifffile, or with Pillow where that has no codec for the compression: ``(H, W, C)``."""
    try:
        with tifffile.TiffFile(path) as opened:
            page, series = opened.pages.first, opened.series[0]
            if page.photometric not in (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB):
                return _read_pillow(path, 3)
            values, axes = series.asarray(), series.axes
            orientation = int(page.tags.valueof(274, 1))
    except tifffile.TiffFileError:
        raise UnidentifiedImageError from None
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        return _read_pillow(path, 3)
    return _orient(_channels_last(values, axes), orientation)


def _channels_last(values: NDArray[Any], axes: str) -> NDArray[Any]:
    extra = [k for k, axis in enumerate(axes) if axis not in "YX" and values.shape[k] > 1]
    if len(extra) > 1 or "Y" not in axes or "X" not in axes:
        raise ValueError(f"its axes {axes} {values.shape} are not those of one flat picture")
    order = [axes.index("Y"), axes.index("X"), *extra]
    rest = [k for k in range(values.ndim) if k not in order]
    moved = values.transpose(*order, *rest)
    return moved.reshape(moved.shape[0], moved.shape[1], -1)


def _orient(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn ``(H, W, C)`` upright from one of TIFF's eight orientations."""
    if orientation in (5, 6, 7, 8):
        values = values.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return values


def _to_bytes(values: NDArray[Any], path: Path) -> NDArray[np.uint8]:
    """Scale ``(H, W, C)`` of any number type to 8 bits."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values.astype(np.uint8) * np.uint8(255)
    if values.size == 0 or values.dtype.kind not in "iuf":
        raise InputError(f"{path} holds no numbers that make a picture ({values.dtype}); convert it to 8 or 16 bits.")
    together = values.shape[2] == 3
    stretched = np.empty(values.shape, np.uint8)
    for k in range(1 if together else values.shape[2]):
        part = slice(None) if together else slice(k, k + 1)
        stretched[:, :, part] = _stretch(values[:, :, part].astype(np.float32))
    return stretched


def _stretch(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    values = np.nan_to_num(values, copy=False)
    low, high = np.quantile(values, (0.001, 0.999))
    if high <= low:
        low, high = values.min(), values.max()
    return np.rint(255 * np.clip((values - low) / max(high - low, 1e-12), 0, 1)).astype(np.uint8)


def _fit_channels(values: NDArray[np.uint8], channels: int, path: Path) -> NDArray[np.uint8]:
    """``(H, W, C)`` to ``(channels, H, W)``, contiguous and writable."""
    found = values.shape[2]
    if found == 4 and channels == 3:
        values = values[:, :, :3]
    elif found == 1 and channels == 3:
        values = np.repeat(values, 3, axis=2)
    elif found in (3, 4) and channels == 1:
        values = np.rint(values[:, :, :3] @ LUMA).astype(np.uint8)[:, :, None]
    elif found != channels:
        raise InputError(
            f"{path} has {found} channels but {channels} are expected; "
            f"set model.backbone.in_channels to {found} or convert the picture."
        )
    return np.array(values.transpose(2, 0, 1), order="C")


def network_scale(size: Size, config: PictureConfig) -> float:
    """Factor from a picture of ``(height, width)`` to the network's input.

    ``scale`` if it is set; otherwise the shortest side becomes ``min_side``, or the longest ``max_side``
    if it would be longer (the rule of the detector that the paper builds on, its section 4).
    """
    if config.scale is not None:
        return config.scale
    scale = config.min_side / min(size)
    return config.max_side / max(size) if max(size) * scale > config.max_side else scale


def network_size(size: Size, config: PictureConfig, factor: float = 1.0) -> Size:
    """``(height, width)`` of the network's input for a picture of ``size``, ``factor`` times larger."""
    scale = network_scale(size, config) * factor
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def padded_size(size: Size, stride: int, coord_mode: Literal["exact", "tf"]) -> Size:
    """The smallest ``(height, width)`` that holds ``size`` and that the network takes.

    With ``coord_mode`` "exact" both are a multiple of ``stride`` plus 1, so that the outermost feature
    cells lie on the outermost pixels; with "tf" a multiple of ``stride``.
    """
    extra = 1 if coord_mode == "exact" else 0
    height, width = (max(1, -(-(side - extra) // stride)) * stride + extra for side in size)
    return height, width


def normalise(picture: Tensor, config: PictureConfig) -> Tensor:
    """``(C, H, W)`` uint8 to float32 of mean 0 and deviation 1, by the configured mean and std."""
    mean = torch.tensor(config.mean, device=picture.device).view(-1, 1, 1) * 255
    std = torch.tensor(config.std, device=picture.device).view(-1, 1, 1) * 255
    return picture.to(torch.float32).sub_(mean).div_(std)


def resize(inpt: T, size: Size) -> T:
    """A picture ``(C, H, W)`` uint8 or a `masklab.data.transforms.Geometry` to ``size``, bilinear, with a wider kernel when shrinking."""
    return F.resize(inpt, list(size), antialias=True)
