"""Batches of images whose network inputs have one size."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from torch import Tensor

from masklab.utils.types import Size

BATCH_PIXELS = 1 << 20  # of the network's input, in one forward pass
BATCHES_WAITING = 4  # full batches' worth of images that may wait for others of their size


class Prepared(NamedTuple):
    """An image (C, H, W), its padded network input (C, h, w) on the device, and the input's size before padding."""

    image: Tensor
    inputs: Tensor
    size: Size


def size_of(image: Tensor) -> Size:
    """The (height, width) of an image ``(C, H, W)``."""
    return image.shape[1], image.shape[2]


def batches_of(images: Iterable[tuple[int, Prepared]], batch_size: int) -> Iterator[list[tuple[int, Prepared]]]:
    """Images with their positions in batches of one padded size, in the order in which batches fill up.

    Group norm sees the padding, so only inputs of exactly the same padded size share a batch.
    """
    waiting: defaultdict[Size, list[tuple[int, Prepared]]] = defaultdict(list)
    for row, prepared in images:
        size = height, width = size_of(prepared.inputs)
        waiting[size].append((row, prepared))
        if len(waiting[size]) >= min(batch_size, max(1, BATCH_PIXELS // (height * width))):
            yield waiting.pop(size)
        elif sum(map(len, waiting.values())) >= BATCHES_WAITING * batch_size:
            yield waiting.pop(max(waiting, key=lambda size: len(waiting[size])))
    yield from waiting.values()
