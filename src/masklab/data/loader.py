"""Batches for training: a stream of pictures that depends on nothing but the seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from masklab.config import Config, settled
from masklab.data.coco import CocoSplit
from masklab.data.objects import make_targets
from masklab.data.transforms import Geometry, Window, augment_window, cut, draw_window
from masklab.errors import InputError
from masklab.pictures import Box, brightness, is_grey, network_size, normalise, padded_size, resize
from masklab.progress import track
from masklab.structures import Batch, Targets

Sample = tuple[Tensor, Targets, "int | str"]

ORDER, CHANGES, SAMPLES = 1, 2, 3  # kinds of random numbers that must not be the same


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
            model.mask.box_jitter,
        )
        return image, targets, self.split.pictures[index].image_id


def open_picture(
    split: CocoSplit, config: Config, position: int, index: int, augmented: bool = True
) -> tuple[Tensor, Geometry, np.random.Generator]:
    """Picture ``index`` of a split at a position of the training stream.

    Returns it as ``(C, H, W)`` float32, normalised, where its pixels came from, and the random numbers that
    go on from its augmentation.  Only the window that is shown of it is read, where its format allows that.
    """
    rng, rule = np.random.default_rng([config.train.seed, CHANGES, position]), config.pictures
    size = split.pictures[index].size
    window = draw_window(size, rule, rng) if augmented else Window(None, network_size(size, rule))
    picture, geometry = _read_bright(split, config, index, window.box), Geometry.identity(size)
    if window.box is not None:
        geometry = cut(geometry, window.box)
    if augmented:
        picture, geometry = augment_window(picture, geometry, window.target, rule.augment, rng)
    else:
        picture, geometry = resize(picture, window.target), resize(geometry, window.target)
    return normalise(picture, rule), geometry, rng


def _read_bright(split: CocoSplit, config: Config, index: int, box: Box | None) -> Tensor:
    """A part of a picture as `brightness`, its percentiles those of the whole picture."""
    channels, rule = config.model.backbone.channels, config.pictures
    picture = torch.from_numpy(split.read(index, channels, box))
    limits = None if box is None or rule.percentiles is None else split.limits(index, channels, rule.percentiles)
    return brightness(picture, rule, limits, split.pictures[index].path)


class StreamSampler(Sampler[list[tuple[int, int]]]):
    """Batches of ``(position, index)``: ``indices``, a picture's number each, in random order, then again in another.

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


def train_loader(
    split: CocoSplit, config: Config, first_step: int = 0, share: tuple[int, int] = (0, 1)
) -> DataLoader[Batch]:
    """The batches of steps ``first_step`` to ``config.train.steps``, one each; see `stream_loader`."""
    model = config.model
    together = partial(collate, stride=model.backbone.output_stride, coord_mode=model.coord_mode)
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
    when the split has no pictures or the processes cannot share a batch equally, or, while it runs, for a picture
    that cannot be read.
    """
    if not len(split):
        raise InputError(f"{split.json_path} has no pictures to train on; name another split.")
    train = config.train
    return _Loader(
        dataset,
        batch_sampler=StreamSampler(
            _round(split, train.repeat_colour, config.model.backbone.channels),
            settled(train.batch_size, "train.batch_size"),
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
    """The numbers of the pictures that one round shows, those that are not grey as often as wanted."""
    indices = list(range(len(split)))
    if repeat_colour > 1:
        colour = [index for index in track(indices, "grey or colour") if not is_grey(split.read(index, channels))]
        indices += colour * (repeat_colour - 1)
    return indices


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)


class SplitPictures(Dataset[tuple[Tensor, int]]):
    """The pictures of a split as they are: ``(C, H, W)`` of their own depth and the index, for prediction."""

    def __init__(self, split: CocoSplit, channels: int) -> None:
        self.split, self.channels = split, channels

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.from_numpy(self.split.read(index, self.channels)), index
