"""Training batches: a stream of images that depends only on the seed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from masklab.config.fields import resolved
from masklab.config.schema import Config
from masklab.datasets.split import Split
from masklab.images.intensity import is_grey, normalise, rescale_intensity
from masklab.images.resize import network_size, resize
from masklab.ops.coordinates import padded_size
from masklab.structures import Batch, Targets
from masklab.training.data.targets import make_targets
from masklab.training.data.transforms import Geometry, Window, augment_window, crop_to_box, sample_window
from masklab.utils.errors import InputError
from masklab.utils.progress import track
from masklab.utils.signals import follow_parent
from masklab.utils.types import Box

_Example = tuple[Tensor, Targets, "int | str"]

ORDER, AUGMENTATION, SAMPLING = 1, 2, 3  # streams of random numbers, which must differ


class InstanceDataset(Dataset[_Example]):
    """The images of a split as ``(image, Targets, image_id)``; ``image`` is ``(C, H, W)`` float32, normalised.

    ``dataset[position, index]`` is image ``index`` at a position of the training stream; its random numbers depend
    only on the seed and the position.  ``dataset[index]`` is short for ``dataset[index, index]``.  Without
    ``augmented`` images are only resized.
    """

    def __init__(self, split: Split, config: Config, augmented: bool = True) -> None:
        self.split, self.config, self.augmented = split, config, augmented

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: int | tuple[int, int]) -> _Example:
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
    split: Split, config: Config, position: int, index: int, augmented: bool = True
) -> tuple[Tensor, Geometry, np.random.Generator]:
    """Image ``index`` of a split at a position of the training stream.

    Returns ``(C, H, W)`` float32, normalised, the geometry that maps its pixels to those of the file, and the random
    generator that its augmentation used.  Only the window that augmentation keeps is read, where the format allows.
    """
    rng, rule = np.random.default_rng([config.train.seed, AUGMENTATION, position]), config.image
    size = split.images[index].size
    boxes = split.objects(index).boxes if augmented and rule.augment.crop_on_object else None
    window = sample_window(size, rule, rng, boxes) if augmented else Window(None, network_size(size, rule))
    image, geometry = _read_rescaled(split, config, index, window.box), Geometry.identity(size)
    if window.box is not None:
        geometry = crop_to_box(geometry, window.box)
    if augmented:
        image, geometry = augment_window(image, geometry, window.target, rule.augment, rng)
    else:
        image, geometry = resize(image, window.target), resize(geometry, window.target)
    return normalise(image, rule), geometry, rng


def _read_rescaled(split: Split, config: Config, index: int, box: Box | None) -> Tensor:
    """A part of an image, its intensities rescaled by percentiles of the whole image."""
    channels, rule = config.model.backbone.channels, config.image
    image = torch.from_numpy(split.read(index, channels, box))
    range_ = None if box is None or rule.percentiles is None else split.intensity_range(index, channels, rule)
    return rescale_intensity(image, rule, range_, split.images[index].path)


class StreamSampler(Sampler[list[tuple[int, int]]]):
    """Batches of ``(position, index)``: rounds through the image numbers ``indices``, each in another random order.

    Batch ``i`` holds the positions from ``i * batch_size`` on, whatever ``first_step`` is.  Each of several processes
    has an equal part of a batch; ``share`` is (rank, number of processes).
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
    """A loader that raises a worker's `InputError` with its own message, which torch puts into a stack trace."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        try:
            yield from super().__iter__()
        except InputError as error:
            raise InputError(str(error).rsplit("InputError: ", 1)[-1].strip()) from None


def collate(samples: list[_Example], stride: int) -> Batch:
    """One batch of some images and their targets; see `pad_images`."""
    images, sizes = pad_images([image for image, _, _ in samples], stride)
    return Batch(images, sizes, [targets for _, targets, _ in samples], [image_id for _, _, image_id in samples])


def pad_images(images: list[Tensor], stride: int) -> tuple[Tensor, Tensor]:
    """Pad images at the bottom and right with zeros, the mean colour, to one size that suits the network.

    Returns them as ``(N, C, H, W)``, and ``(N, 2)`` int64, the (height, width) of each before padding.
    """
    sizes = torch.tensor([image.shape[1:] for image in images])
    tallest, widest = sizes.amax(dim=0).tolist()
    batch = torch.zeros(len(images), images[0].shape[0], *padded_size((tallest, widest), stride))
    for padded, image in zip(batch, images, strict=True):
        padded[:, : image.shape[1], : image.shape[2]] = image
    return batch, sizes


def train_loader(
    split: Split, config: Config, first_step: int = 0, share: tuple[int, int] = (0, 1)
) -> DataLoader[Batch]:
    """The batches of the steps from ``first_step`` to ``config.train.steps``; see `stream_loader`."""
    model = config.model
    together = partial(collate, stride=model.backbone.output_stride)
    return stream_loader(InstanceDataset(split, config), together, split, config, first_step, share)


def stream_loader(
    dataset: Dataset[Any],
    collate_fn: Callable[[list[Any]], Any],
    split: Split,
    config: Config,
    first_step: int,
    share: tuple[int, int],
) -> DataLoader[Any]:
    """Batches of ``dataset[position, index]``, collated by ``collate_fn``; for ``share`` see `StreamSampler`.

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
        worker_init_fn=_prepare,
        generator=torch.Generator().manual_seed(train.seed),
    )


def set_steps(batches: DataLoader[Any], steps: int) -> None:
    """Let the batches of `stream_loader` end after another number of steps."""
    sampler = batches.batch_sampler
    if isinstance(sampler, StreamSampler):
        sampler.steps = steps


def _round(split: Split, repeat_colour: int, channels: int) -> list[int]:
    """The image numbers of one round; colour images occur ``repeat_colour`` times."""
    indices = list(range(len(split)))
    if repeat_colour > 1:
        colour = [index for index in track(indices, "grey or colour") if not is_grey(split.read(index, channels))]
        indices += colour * (repeat_colour - 1)
    return indices


def _prepare(worker: int) -> None:
    """Make a new process ready; torch ends one that hangs by SIGTERM, so it must not be ignored."""
    torch.set_num_threads(1)
    follow_parent(lambda *_: os._exit(0))
