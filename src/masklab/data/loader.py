"""Batches for training: a stream of pictures that depends on nothing but the seed."""

from __future__ import annotations

from collections.abc import Iterator
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
        rng = np.random.default_rng([self.config.train.seed, CHANGES, position])
        model, pictures = self.config.model, self.config.pictures
        picture = torch.from_numpy(self.split.read(index, model.backbone.in_channels))
        geometry = Geometry.identity((picture.shape[1], picture.shape[2]))
        if self.augmented:
            picture, geometry = augment(picture, geometry, pictures, rng)
        else:
            size = network_size(geometry.canvas_size, pictures)
            picture, geometry = resize(picture, size), resize(geometry, size)
        targets = make_targets(
            self.split.objects(index),
            geometry,
            model.mask.crop,
            model.mask.train_masks,
            rng,
            model.coord_mode,
            padded_size(geometry.canvas_size, model.backbone.output_stride, model.coord_mode),
        )
        return normalise(picture, pictures), targets, self.split.pictures[index].image_id


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
    """Pad pictures at the bottom and right with zeros, the mean colour, to one size that the network takes."""
    sizes = torch.tensor([image.shape[1:] for image, _, _ in samples])
    tallest, widest = sizes.amax(dim=0).tolist()
    images = torch.zeros(len(samples), samples[0][0].shape[0], *padded_size((tallest, widest), stride, coord_mode))
    for padded, (image, _, _) in zip(images, samples, strict=True):
        padded[:, : image.shape[1], : image.shape[2]] = image
    return Batch(images, sizes, [targets for _, targets, _ in samples], [image_id for _, _, image_id in samples])


def train_loader(split: CocoSplit, config: Config, first_step: int = 0) -> DataLoader[Batch]:
    """The batches of steps ``first_step`` to ``config.train.steps``, one each.

    Batch ``i`` is the same whatever ``first_step`` and the number of workers are.  Raises `InputError`
    when the split has no pictures, or, while it runs, for a picture that cannot be read.
    """
    if not len(split):
        raise InputError(f"{split.json_path} has no pictures to train on; name another split.")
    train, model = config.train, config.model
    return _Loader(
        InstanceDataset(split, config),
        batch_sampler=StreamSampler(len(split), train.batch_size, train.steps, train.seed, first_step),
        collate_fn=partial(collate, stride=model.backbone.output_stride, coord_mode=model.coord_mode),
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
