"""Batches for training: a stream of pictures that depends on nothing but the seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from masklab.config import Config
from masklab.data.coco import CocoSplit
from masklab.data.objects import make_targets
from masklab.data.transforms import Geometry, augment
from masklab.errors import InputError
from masklab.pictures import network_size, normalise, padded_size, resize
from masklab.structures import Batch, Targets

Sample = tuple[Tensor, Targets, "int | str"]

ORDER, CHANGES = 1, 2  # two kinds of random numbers that must not be the same


class InstanceDataset(Dataset[Sample]):
    """The pictures of a split as ``(image, Targets, image_id)``; ``image`` is ``(C, H, W)`` float32, normalised.

    ``dataset[position, index]`` is picture ``index`` at a position of the training stream; all that is
    random about it is drawn from the seed and the position.  ``dataset[index]`` is short for
    ``dataset[index, index]``.  Without ``augmented`` pictures are only resized.
    """

    def __init__(self, split: CocoSplit, config: Config, augmented: bool = True) -> None:
        self.split, self.config, self.augmented = split, config, augmented

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        position, index = key if isinstance(key, tuple) else (key, key)
        if not 0 <= index < len(self):
            raise IndexError(index)
        model = self.config.model
        image, geometry, rng = open_picture(self.split, self.config, position, index, self.augmented)
        targets = make_targets(
            self.split.objects(index),
            geometry,
            model.mask.crop,
            model.mask.train_masks,
            rng,
            model.coord_mode,
            padded_size(geometry.canvas_size, model.backbone.output_stride, model.coord_mode),
        )
        return image, targets, self.split.pictures[index].image_id


def open_picture(
    split: CocoSplit, config: Config, position: int, index: int, augmented: bool = True
) -> tuple[Tensor, Geometry, np.random.Generator]:
    """Picture ``index`` of a split at a position of the training stream.

    Returns it as ``(C, H, W)`` float32, normalised, where its pixels came from, and the random numbers that
    go on from its augmentation.
    """
    rng = np.random.default_rng([config.train.seed, CHANGES, position])
    picture = torch.from_numpy(split.read(index, config.model.backbone.in_channels))
    geometry = Geometry.identity((picture.shape[1], picture.shape[2]))
    if augmented:
        picture, geometry = augment(picture, geometry, config.pictures, rng)
    else:
        size = network_size(geometry.canvas_size, config.pictures)
        picture, geometry = resize(picture, size), resize(geometry, size)
    return normalise(picture, config.pictures), geometry, rng


class StreamSampler(Sampler[list[tuple[int, int]]]):
    """Batches of ``(position, index)``: every picture once, in random order, then again in another.

    Batch ``i`` holds the positions ``i * batch_size`` and following, whatever step the stream begins at.
    """

    def __init__(self, pictures: int, batch_size: int, steps: int, seed: int, first_step: int = 0) -> None:
        self.pictures, self.batch_size, self.steps = pictures, batch_size, steps
        self.seed, self.first_step = seed, first_step

    def __len__(self) -> int:
        return max(0, self.steps - self.first_step)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        round_, order = -1, np.zeros(0, np.int64)
        for step in range(self.first_step, self.steps):
            batch = []
            for position in range(step * self.batch_size, (step + 1) * self.batch_size):
                if position // self.pictures != round_:
                    round_ = position // self.pictures
                    order = np.random.default_rng([self.seed, ORDER, round_]).permutation(self.pictures)
                batch.append((position, int(order[position % self.pictures])))
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


def collate(samples: list[Sample], stride: int, coord_mode: Literal["exact", "tf"]) -> Batch:
    """Put pictures and their targets together; see `pad_pictures`."""
    images, sizes = pad_pictures([image for image, _, _ in samples], stride, coord_mode)
    return Batch(images, sizes, [targets for _, targets, _ in samples], [image_id for _, _, image_id in samples])


def pad_pictures(pictures: list[Tensor], stride: int, coord_mode: Literal["exact", "tf"]) -> tuple[Tensor, Tensor]:
    """Pad pictures at the bottom and right with zeros, the mean colour, to one size that the network takes.

    Returns them as ``(N, C, H, W)``, and ``(N, 2)`` int64, the (height, width) of each before padding.
    """
    sizes = torch.tensor([picture.shape[1:] for picture in pictures])
    tallest, widest = sizes.amax(dim=0).tolist()
    images = torch.zeros(len(pictures), pictures[0].shape[0], *padded_size((tallest, widest), stride, coord_mode))
    for padded, picture in zip(images, pictures, strict=True):
        padded[:, : picture.shape[1], : picture.shape[2]] = picture
    return images, sizes


def train_loader(split: CocoSplit, config: Config, first_step: int = 0) -> DataLoader[Batch]:
    """The batches of steps ``first_step`` to ``config.train.steps``, one each; see `stream_loader`."""
    model = config.model
    together = partial(collate, stride=model.backbone.output_stride, coord_mode=model.coord_mode)
    return stream_loader(InstanceDataset(split, config), together, split, config, first_step)


def stream_loader(
    dataset: Dataset[Any], collate_fn: Callable[[list[Any]], Any], split: CocoSplit, config: Config, first_step: int
) -> DataLoader[Any]:
    """Batches of ``dataset[position, index]``, put together by ``collate_fn``.

    Batch ``i`` is the same whatever ``first_step`` and the number of workers are.  Raises `InputError`
    when the split has no pictures, or, while it runs, for a picture that cannot be read.
    """
    if not len(split):
        raise InputError(f"{split.json_path} has no pictures to train on; name another split.")
    train = config.train
    return _Loader(
        dataset,
        batch_sampler=StreamSampler(len(split), train.batch_size, train.steps, train.seed, first_step),
        collate_fn=collate_fn,
        num_workers=train.workers,
        worker_init_fn=_one_thread,
        generator=torch.Generator().manual_seed(train.seed),
    )


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)


class SplitPictures(Dataset[tuple[Tensor, "int | str"]]):
    """The pictures of a split as they are: ``(C, H, W)`` uint8 and the image id, for prediction."""

    def __init__(self, split: CocoSplit, channels: int) -> None:
        self.split, self.channels = split, channels

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, int | str]:
        return torch.from_numpy(self.split.read(index, self.channels)), self.split.pictures[index].image_id
