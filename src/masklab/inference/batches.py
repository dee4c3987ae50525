"""What is predicted together: batches of images whose network inputs have one size, and images in threads."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from masklab.inference.finder import ImageThreads
from masklab.inference.test_time_augmentation import Detected
from masklab.results.instances import Instances
from masklab.structures import ClassTable
from masklab.utils.types import Size

BATCH_PIXELS = 1 << 20  # of the network's input, in one forward pass
BATCHES_WAITING = 4  # full batches' worth of images that may wait for others of their size
IMAGES_AT_ONCE = 4  # in threads, with their maps in memory


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


def instances_of(image: Tensor, found: Detected, masks: Tensor, classes: ClassTable) -> Instances:
    """What was found in an image (C, H, W), in its own pixels, with the masks (R, P, P) over the boxes."""
    boxes, scores, labels = found
    return Instances(
        size=size_of(image),
        boxes=boxes.cpu().numpy(),
        scores=scores.cpu().numpy(),
        labels=labels.cpu().numpy(),
        masks=masks.cpu().numpy(),
        class_names=classes.names,
        category_ids=classes.ids,
    )


@contextmanager
def image_threads(device: torch.device) -> Iterator[ImageThreads]:
    """On a CPU, several images at the same time: its threads gain more apart than within an image."""
    threads = torch.get_num_threads()
    number = min(threads, IMAGES_AT_ONCE) if device.type == "cpu" else 1
    try:
        yield ImageThreads(
            number, lambda: torch.set_num_threads(threads // number), lambda: torch.set_num_threads(threads)
        )
    finally:
        torch.set_num_threads(threads)  # torch gives threads that begin later what was set last
