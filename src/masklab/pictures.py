"""Pictures: reading any common kind as ``(C, H, W)`` at its own depth, and making the network's input of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from masklab.config import PictureConfig
from masklab.decode import ORIENTATION, TIFF_SUFFIXES, decoding, open_picture_file, open_pillow, pillow_values
from masklab.errors import InputError

Size = tuple[int, int]
T = TypeVar("T", bound=Tensor)

PICTURE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".jp2", ".ppm", ".pgm"}
)
LUMA = np.array([0.299, 0.587, 0.114])
FULL_RANGE = {torch.uint8: (0.0, 255.0), torch.uint16: (0.0, 65535.0), torch.float32: (0.0, 1.0)}
SLACK = 1e-3  # beyond 0 and 1, where rounding may have left a float
SAMPLE = 1 << 20  # pixels of a picture that its percentiles are taken from, at most

Box = tuple[int, int, int, int]
Limits = tuple[list[float], list[float]]
"""For each channel, the number that becomes black and the one that becomes white."""


def read_picture(path: str | Path, channels: int | None) -> NDArray[Any]:
    """Read a picture as ``(channels, H, W)`` at its own depth, upright.

    uint8 and uint16 stay what they are and bits become 0 and 255; all other numbers become float32.  The EXIF
    orientation is applied.  Grey, palette and transparent pictures become RGB for 3 channels and grey for 1; any
    other number must be the file's own, which None takes, without alpha.  Of 16-bit colour in JPEG 2000 and PPM,
    Pillow reads 8 bits.

    Raises `InputError` naming the file when it is missing, is damaged, is not a picture, is a stack or has another
    number of channels.
    """
    return read_window(path, channels)[0]


def read_window(path: str | Path, channels: int | None, box: Box | None = None) -> tuple[NDArray[Any], Size]:
    """The part of a picture inside ``box`` (xyxy, whole pixels), and ``(height, width)`` of all of it.

    Everything else is as in `read_picture`.  Of a TIFF only that part is read, or the tiles or strips that it meets;
    other kinds, and TIFF that is not stored upright or needs Pillow's decoder, are decoded whole.
    """
    x1, y1, x2, y2 = box or (None, None, None, None)
    with open_picture_file(Path(path), channels) as opened:
        return _values(opened.part(slice(y1, y2), slice(x1, x2)), channels, path), opened.size


def read_sample(path: str | Path, channels: int | None) -> NDArray[Any]:
    """A picture thinned out evenly to about a million pixels at most, otherwise as in `read_picture`."""
    with open_picture_file(Path(path), channels) as opened:
        some = slice(None, None, _sampling(opened.size))
        return _values(opened.part(some, some), channels, path)


def read_limits(path: str | Path, channels: int | None, percentiles: tuple[float, float]) -> Limits:
    """The `value_limits` of a picture, without holding all of it where it can be read in parts."""
    return _percentiles(read_sample(path, channels), percentiles)


def picture_kind(path: str | Path) -> tuple[int, np.dtype[Any]]:
    """The number of channels of a picture, alpha left out, and the type of its numbers in the file."""
    with open_picture_file(Path(path), None) as opened:
        return opened.channels, opened.values.dtype


def from_pillow(picture: Image.Image, channels: int) -> NDArray[Any]:
    """A Pillow picture of any mode as `read_picture` gives a file, but as it lies: its EXIF orientation is not applied."""
    return _values(pillow_values(picture, channels), channels, "the picture")


def _fit_channels(values: NDArray[Any], channels: int | None, name: str | Path) -> NDArray[Any]:
    """``(H, W, C)`` to ``(channels, H, W)``, contiguous and writable: grey repeated, or the luminance of RGB."""
    found = values.shape[2]
    if found == 1 and channels == 3:
        values = np.repeat(values, 3, axis=2)
    elif found == 3 and channels == 1:
        grey = values @ LUMA
        values = (grey if values.dtype.kind == "f" else np.rint(grey)).astype(values.dtype)[:, :, None]
    elif channels not in (None, found):
        raise InputError(
            f"{name} has {found} channels but {channels} are expected; "
            f"train with model.backbone.in_channels {found} or convert the picture."
        )
    return np.array(values.transpose(2, 0, 1), order="C")


def _values(values: NDArray[Any], channels: int | None, name: str | Path) -> NDArray[Any]:
    """``(H, W, C)`` of any number type to ``(channels, H, W)`` uint8, uint16 or float32."""
    if values.dtype == bool:
        values = values.astype(np.uint8) * np.uint8(255)
    if values.size == 0 or values.dtype.kind not in "iuf":
        raise InputError(f"{name} holds no numbers that make a picture ({values.dtype}); convert it to 8 or 16 bits.")
    kept = values.dtype.newbyteorder("=")
    values = values.astype(kept if kept in (np.uint8, np.uint16) else np.float32, copy=False)
    return _fit_channels(values, channels, name)


def picture_size(path: str | Path) -> Size:
    """``(height, width)`` of a picture as `read_picture` turns it upright, from the file's header alone.

    A PNG is decoded for it, since its orientation may stand at its end.
    Raises `InputError` naming the file when it is missing or its header cannot be read.
    """
    path = Path(path)
    with decoding(path):
        if path.suffix.lower() in TIFF_SUFFIXES:
            with tifffile.TiffFile(path) as tiff:
                sides = dict(zip(tiff.series[0].axes, tiff.series[0].shape, strict=True))
                height, width = sides["Y"], sides["X"]
                orientation = int(tiff.pages.first.tags.valueof(ORIENTATION, 1))
        else:
            with open_pillow(path) as picture:
                width, height = picture.size
                orientation = picture.getexif().get(ORIENTATION, 1)
    return (width, height) if orientation in (5, 6, 7, 8) else (height, width)


def list_pictures(path: str | Path) -> list[Path]:
    """The picture itself if ``path`` is a file, else the pictures directly inside the folder, by name, hidden ones left out.

    Raises `InputError` when there is nothing at ``path`` or the folder holds no picture.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"{path}: there is no such picture or folder; correct the path.")
    found = sorted(
        p for p in path.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES and p.name[0] != "." and p.is_file()
    )
    if not found:
        raise InputError(f"{path} holds no picture ({', '.join(sorted(PICTURE_SUFFIXES))}); name another folder.")
    return found


def network_scale(size: Size, config: PictureConfig) -> float:
    """Factor from a picture of ``(height, width)`` to the network's input.

    ``scale`` if it is set; otherwise the shortest side becomes ``min_side``, or the longest ``max_side``
    if it would be longer (the rule of the detector that the paper builds on, its section 4.1).
    """
    if config.scale is not None:
        return config.scale
    scale = config.min_side / min(size)
    return config.max_side / max(size) if max(size) * scale > config.max_side else scale


def is_grey(picture: NDArray[Any]) -> bool:
    """Whether all channels of a picture (C, H, W) are equal."""
    return bool(np.array_equal(picture[1:], picture[:-1]))


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


def brightness(
    picture: Tensor, config: PictureConfig, limits: Limits | None = None, name: str | Path = "the picture"
) -> Tensor:
    """The numbers of a picture ``(C, H, W)`` uint8, uint16 or float32 as brightness from 0, black, to 255, white.

    ``config.value_range`` or ``config.percentiles`` say which numbers are black and white, or else the whole range
    of the type does; numbers beyond become black or white.  uint8 stays as it is where its whole range counts, and
    everything else becomes float32.  ``limits`` are the `value_limits` of the picture that this one is a part of.
    Training, prediction and figures all come through here.

    Raises `InputError` naming the picture for floats beyond 0 to 1 of which the configuration does not say more.
    """
    if picture.dtype == torch.uint8 and config.value_range is None and config.percentiles is None:
        return picture
    values = picture.to(torch.float32, copy=True)
    if config.percentiles is not None:
        low, high = limits or value_limits(picture, config.percentiles)
    else:
        black, white = config.value_range or FULL_RANGE[picture.dtype]
        if config.value_range is None and picture.dtype == torch.float32:
            _check_unit_range(picture, name)
        low, high = [black], [white]
    first, last = (torch.tensor(side, device=values.device).view(-1, 1, 1) for side in (low, high))
    return values.sub_(first).mul_(255 / (last - first)).nan_to_num_(0, 255, 0).clamp_(0, 255)


def value_limits(picture: Tensor, percentiles: tuple[float, float]) -> Limits:
    """The numbers at two percentiles of each channel of a picture ``(C, H, W)``.

    About a million pixels at most are looked at, evenly spread; those that are not finite are left out.
    """
    step = _sampling((picture.shape[1], picture.shape[2]))
    return _percentiles(picture[:, ::step, ::step].cpu().numpy(), percentiles)


def _sampling(size: Size) -> int:
    """Every how many pixels, down and across, a picture of a size is looked at."""
    return max(1, math.ceil(math.sqrt(size[0] * size[1] / SAMPLE)))


def _percentiles(sample: NDArray[Any], percentiles: tuple[float, float]) -> Limits:
    low, high = [], []
    for channel in sample.reshape(len(sample), -1):
        finite = channel[np.isfinite(channel)] if channel.dtype.kind == "f" else channel
        black, white = np.percentile(finite, percentiles).tolist() if finite.size else (0.0, 1.0)
        if white <= black:  # almost all the same: what little there is counts
            black, white = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        low.append(black)
        high.append(white if white > black else black + 1)
    return low, high


def _check_unit_range(picture: Tensor, name: str | Path) -> None:
    least, most = picture.nan_to_num(0).aminmax()
    if least < -SLACK or most > 1 + SLACK:
        raise InputError(
            f"{name} holds numbers from {least:g} to {most:g} where floats from 0 to 1 are expected: scale them, "
            "or train with pictures.value_range or pictures.percentiles."
        )


def displayed(values: NDArray[Any], config: PictureConfig, name: str | Path = "the picture") -> NDArray[np.uint8]:
    """A picture ``(C, H, W)`` of any depth as ``(3, H, W)`` uint8 to look at: its first three channels, or the first as grey.

    Raises `InputError` as `brightness` does.
    """
    shown = brightness(torch.from_numpy(values), config, name=name)
    shown = shown[:3] if len(shown) >= 3 else shown[:1].expand(3, -1, -1)
    return (shown if shown.dtype == torch.uint8 else shown.round().to(torch.uint8)).numpy()


def normalise(picture: Tensor, config: PictureConfig) -> Tensor:
    """``(C, H, W)`` of `brightness` 0 to 255 to float32 of mean 0 and deviation 1, by the configured mean and std."""
    mean = torch.tensor(config.mean, device=picture.device).view(-1, 1, 1) * 255
    std = torch.tensor(config.std, device=picture.device).view(-1, 1, 1) * 255
    return picture.to(torch.float32, copy=True).sub_(mean).div_(std)


def network_picture(picture: Tensor, config: PictureConfig, factor: float = 1.0) -> Tensor:
    """What the network sees of a picture (C, H, W) of any depth, before padding: float32 at its `network_size`."""
    size = network_size((picture.shape[1], picture.shape[2]), config, factor)
    return normalise(resize(brightness(picture, config), size), config)


def resize(inpt: T, size: Size) -> T:
    """A picture ``(C, H, W)`` or a `masklab.data.transforms.Geometry` to ``size``, bilinear, with a wider kernel when shrinking."""
    return F.resize(inpt, list(size), antialias=True)
