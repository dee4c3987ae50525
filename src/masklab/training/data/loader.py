"""Batches for training: a stream of images that depends on nothing but the seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from masklab.config.fields import resolved
from masklab.config.schema import Config
from masklab.datasets.coco import CocoSplit
from masklab.images.intensity import is_grey, normalise, rescale_intensity
from masklab.images.resize import network_size, resize
from masklab.ops.coordinates import padded_size
from masklab.structures import Batch, Targets
from masklab.training.data.targets import make_targets
from masklab.training.data.transforms import Geometry, Window, augment_window, cut, sample_window
from masklab.utils.errors import InputError
from masklab.utils.progress import track
from masklab.utils.types import Box

Example = tuple[Tensor, Targets, "int | str"]

ORDER, AUGMENTATION, SAMPLING = 1, 2, 3  # kinds of random numbers that must not be the same


class InstanceDataset(Dataset[Example]):
    """The images of a split as ``(image, Targets, image_id)``; ``image`` is ``(C, H, W)`` float32, normalised.

    ``dataset[position, index]`` is image ``index`` at a position of the training stream; all that is
    random about it is drawn from the seed and the position.  ``dataset[index]`` is short for
    ``dataset[index, index]``.  Without ``augmented`` images are only resized.
    """

    def __init__(self, split: CocoSplit, config: Config, augmented: bool = True) -> None:
        self.split, self.config, self.augmented = split, config, augmented

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: int | tuple[int, int]) -> Example:
        position, index = key if isinstance(key, tuple) else (key, key)
        if not 0 <= index < len(self):
            raise IndexError(index)
        model = self.config.model
        image, geometry, rng = open_training_image(self.split, self.config, position, index, self.augmented)
        targets = make_targets(
            self.split.objects(index),
            geometry,
            model.mask.mask_size,
            model.mask.train_masks,
            rng,
            model.mask.box_jitter,
        )
        return image, targets, self.split.images[index].image_id


def open_training_image(
    split: CocoSplit, config: Config, position: int, index: int, augmented: bool = True
) -> tuple[Tensor, Geometry, np.random.Generator]:
    """Image ``index`` of a split at a position of the training stream.

    Returns it as ``(C, H, W)`` float32, normalised, where its pixels came from, and the random numbers that
    go on from its augmentation.  Only the window that is shown of it is read, where its format allows that.
    """
    rng, rule = np.random.default_rng([config.train.seed, AUGMENTATION, position]), config.image
    size = split.images[index].size
    window = sample_window(size, rule, rng) if augmented else Window(None, network_size(size, rule))
    image, geometry = _read_bright(split, config, index, window.box), Geometry.identity(size)
    if window.box is not None:
        geometry = cut(geometry, window.box)
    if augmented:
        image, geometry = augment_window(image, geometry, window.target, rule.augment, rng)
    else:
        image, geometry = resize(image, window.target), resize(geometry, window.target)
    return normalise(image, rule), geometry, rng


def _read_bright(split: CocoSplit, config: Config, index: int, box: Box | None) -> Tensor:
    """A part of an image as `rescale_intensity`, its percentiles those of the whole image."""
    channels, rule = config.model.backbone.channels, config.image
    image = torch.from_numpy(split.read(index, channels, box))
    range_ = (
        None if box is None or rule.percentiles is None else split.intensity_range(index, channels, rule.percentiles)
    )
    return rescale_intensity(image, rule, range_, split.images[index].path)


class StreamSampler(Sampler[list[tuple[int, int]]]):
    """Batches of ``(position, index)``: ``indices``, an image's number each, in random order, then again in another.

    Batch ``i`` holds the positions ``i * batch_size`` and following, whatever step the stream begins at; of
    several processes (``share`` is one's number and how many there are) each has an equal run of them.
    """

    def __init__(
        self,
        indices: Sequence[int],
        batch_size: int,
        steps: int,
        seed: int,
        first_step: int = 0,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.indices, self.batch_size, self.steps = indices, batch_size, steps
        self.seed, self.first_step = seed, first_step
        rank, processes = share
        if batch_size % processes:
            raise InputError(
                f"train.batch_size is {batch_size} but {processes} processes share it: make it a multiple of {processes}."
            )
        self.own = range(rank * batch_size // processes, (rank + 1) * batch_size // processes)

    def __len__(self) -> int:
        return max(0, self.steps - self.first_step)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        round_, order, count = -1, np.zeros(0, np.int64), len(self.indices)
        for step in range(self.first_step, self.steps):
            batch = []
            for position in (step * self.batch_size + place for place in self.own):
                if position // count != round_:
                    round_ = position // count
                    order = np.random.default_rng([self.seed, ORDER, round_]).permutation(count)
                batch.append((position, self.indices[order[position % count]]))
            yield batch


class _Loader(DataLoader[Any]):
    """Gives an `InputError` of a worker its one sentence back, which torch buries in a stack trace.

    Its length is that of the whole stream, also when it begins at a later step: Lightning counts the
    steps of a resumed run from the stream's beginning.
    """

    def __len__(self) -> int:
        return self.batch_sampler.steps  # type: ignore[union-attr]

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        try:
            yield from super().__iter__()
        except InputError as error:
            raise InputError(str(error).rsplit("InputError: ", 1)[-1].strip()) from None


def collate(samples: list[Example], stride: int) -> Batch:
    """Put images and their targets together; see `pad_images`."""
    images, sizes = pad_images([image for image, _, _ in samples], stride)
    return Batch(images, sizes, [targets for _, targets, _ in samples], [image_id for _, _, image_id in samples])


def pad_images(images: list[Tensor], stride: int) -> tuple[Tensor, Tensor]:
    """Pad images at the bottom and right with zeros, the mean colour, to one size that the network takes.

    Returns them as ``(N, C, H, W)``, and ``(N, 2)`` int64, the (height, width) of each before padding.
    """
    sizes = torch.tensor([image.shape[1:] for image in images])
    tallest, widest = sizes.amax(dim=0).tolist()
    batch = torch.zeros(len(images), images[0].shape[0], *padded_size((tallest, widest), stride))
    for padded, image in zip(batch, images, strict=True):
        padded[:, : image.shape[1], : image.shape[2]] = image
    return batch, sizes


def train_loader(
    split: CocoSplit, config: Config, first_step: int = 0, share: tuple[int, int] = (0, 1)
) -> DataLoader[Batch]:
    """The batches of steps ``first_step`` to ``config.train.steps``, one each; see `stream_loader`."""
    model = config.model
    together = partial(collate, stride=model.backbone.output_stride)
    return stream_loader(InstanceDataset(split, config), together, split, config, first_step, share)


def stream_loader(
    dataset: Dataset[Any],
    collate_fn: Callable[[list[Any]], Any],
    split: CocoSplit,
    config: Config,
    first_step: int,
    share: tuple[int, int],
) -> DataLoader[Any]:
    """Batches of ``dataset[position, index]``, put together by ``collate_fn``; for ``share`` see `StreamSampler`.

    Batch ``i`` is the same whatever ``first_step`` and the number of workers are.  Raises `InputError`
    when the split has no images or the processes cannot share a batch equally, or, while it runs, for an image
    that cannot be read.
    """
    if not len(split):
        raise InputError(f"{split.json_path} has no images to train on; name another split.")
    train = config.train
    return _Loader(
        dataset,
        batch_sampler=StreamSampler(
            _round(split, train.repeat_colour, config.model.backbone.channels),
            resolved(train.batch_size, "train.batch_size"),
            train.steps,
            train.seed,
            first_step,
            share,
        ),
        collate_fn=collate_fn,
        num_workers=train.workers,
        worker_init_fn=_one_thread,
        generator=torch.Generator().manual_seed(train.seed),
    )


def _round(split: CocoSplit, repeat_colour: int, channels: int) -> list[int]:
    """The numbers of the images that one round shows, those that are not grey as often as wanted."""
    indices = list(range(len(split)))
    if repeat_colour > 1:
        colour = [index for index in track(indices, "grey or colour") if not is_grey(split.read(index, channels))]
        indices += colour * (repeat_colour - 1)
    return indices


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)


class ValidationImages(Dataset[tuple[Tensor, int]]):
    """The images of a split as they are: ``(C, H, W)`` of their own depth and the index, for prediction."""

    def __init__(self, split: CocoSplit, channels: int) -> None:
        self.split, self.channels = split, channels

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.from_numpy(self.split.read(index, self.channels)), index
