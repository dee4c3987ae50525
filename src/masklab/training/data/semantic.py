"""Class maps rasterized from annotated objects, and their batches, for semantic pretraining.

K classes; a map is uint8 ``(H, W)``: ``0..K-1``, K for background, 255 where the class is unknown.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from masklab.config.schema import Config
from masklab.datasets.objects import Objects
from masklab.datasets.split import Split
from masklab.masks import rle
from masklab.ops.coordinates import pixel_positions
from masklab.training.data.loader import open_training_image, pad_images, stream_loader
from masklab.training.data.transforms import Geometry

ClassMap = NDArray[np.uint8]

IGNORED = 255
MOST_CLASSES = IGNORED - 1  # background takes one more number


class SemanticBatch(NamedTuple):
    """``images`` (N, C, H, W) float32, normalised and padded; ``labels`` (N, H, W) uint8, 255 in the padding."""

    images: Tensor
    labels: Tensor
    image_ids: list[int | str]


def rasterize(objects: Objects, background: int) -> ClassMap:
    """The class of every pixel of an image, ``(H, W)`` (paper, section 4.2, "Seg").

    Small objects cover large ones, and all of them cover crowd regions, which are 255; a crowd without a mask fills
    its box.
    """
    labels = np.full(objects.size, background, np.uint8)
    for box, runs in zip(objects.ignored, objects.crowds, strict=True):
        _fill(labels, box, runs, IGNORED)
    for row in np.argsort(-objects.areas, kind="stable").tolist():
        _fill(labels, objects.boxes[row], objects.rle(row), int(objects.labels[row]))
    return labels


def _fill(labels: ClassMap, box: NDArray[np.float32], runs: NDArray[np.int64] | None, value: int) -> None:
    left, top = np.floor(box[:2]).astype(int).tolist()
    right, bottom = np.ceil(box[2:]).astype(int).tolist()
    inside = labels[top:bottom, left:right]
    if runs is None:
        inside[:] = value
    else:
        height, width = labels.shape
        inside[rle.window(runs, (height, width), (left, top, right, bottom)).astype(bool)] = value


def warp(labels: ClassMap, geometry: Geometry) -> ClassMap:
    """Apply the transforms of an image to its map (H, W): an output pixel gets the class at its centre in the source."""
    height, width = geometry.canvas_size
    across, down, transposed = geometry.axes_to_source(
        *(pixel_positions(np.arange(side, dtype=np.float64)) for side in (width, height))
    )
    columns = np.clip(across.astype(np.int64), 0, labels.shape[1] - 1)
    rows = np.clip(down.astype(np.int64), 0, labels.shape[0] - 1)
    warped = labels.take(rows, axis=0).take(columns, axis=1)
    return np.ascontiguousarray(warped.T) if transposed else warped


class _SemanticDataset(Dataset[tuple[Tensor, Tensor, "int | str"]]):
    """``dataset[position, index]``: image ``index`` at a position of the training stream, its map, and its id."""

    def __init__(self, split: Split, config: Config) -> None:
        self.split, self.config = split, config

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, int | str]:
        position, index = key
        image, geometry, _ = open_training_image(self.split, self.config, position, index)
        labels = warp(rasterize(self.split.objects(index), len(self.split.categories)), geometry)
        return image, torch.from_numpy(labels), self.split.images[index].image_id


def collate_semantic(samples: list[tuple[Tensor, Tensor, int | str]], stride: int) -> SemanticBatch:
    """Pad images to one size, a multiple of ``stride`` plus 1, so that cell ``i`` lies on pixel ``stride * i``."""
    images, _ = pad_images([image for image, _, _ in samples], stride)
    labels = torch.full((len(samples), *images.shape[2:]), IGNORED, dtype=torch.uint8)
    for padded, (_, values, _) in zip(labels, samples, strict=True):
        padded[: values.shape[0], : values.shape[1]] = values
    return SemanticBatch(images, labels, [image_id for _, _, image_id in samples])


def semantic_loader(
    split: Split, config: Config, first_step: int = 0, share: tuple[int, int] = (0, 1)
) -> DataLoader[SemanticBatch]:
    """The batches of steps ``first_step`` to ``config.train.steps``; see `masklab.training.data.loader.stream_loader`."""
    collate = partial(collate_semantic, stride=config.model.backbone.output_stride)
    return stream_loader(_SemanticDataset(split, config), collate, split, config, first_step, share)
