"""Tasks: what the training loop trains, and instance segmentation as one of them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from masklab.config.schema import Config
from masklab.datasets.split import Split
from masklab.evaluation.coco import coco_metrics
from masklab.images.exposure import InputCheck
from masklab.inference.options import PredictionOptions
from masklab.inference.predictor import Predictor
from masklab.model.masklab import MaskLab
from masklab.structures import Batch
from masklab.training.data.loader import SAMPLING
from masklab.training.distributed import all_gather
from masklab.training.kept_results import KEPT, write_results
from masklab.training.step import TrainingStep
from masklab.utils.device import number_format
from masklab.weights.checkpoint import save_model


class Task(ABC):
    """A network with its losses, its validation and its weights file: what `masklab.training.loop.fit` trains.

    ``figure`` is the validation figure that the best weights are chosen by, without its prefix ``val/``.  Where
    ``thread_safe`` is true, `losses` may run in several threads at once.
    """

    figure: ClassVar[str]
    thread_safe = False
    tuned_images: ClassVar[int] = 0
    """Training images that are predicted after the last step."""

    def __init__(self, network: nn.Module, config: Config, val: Split) -> None:
        self.network, self.config, self.val = network, config, val

    def reconfigure(self, config: Config) -> None:
        """Take a configuration with another schedule of the training."""
        self.config = config

    @abstractmethod
    def losses(self, batch: Any, first: int) -> dict[str, Tensor]:
        """Losses by name, each a scalar; the batch's first image is at position ``first`` of the training stream."""

    @abstractmethod
    def validate(self, network: Any, indices: Sequence[int]) -> dict[str, float]:
        """Figures of a network in evaluation mode, NaN where undefined; ``indices`` are this process's images of ``val``.

        Every process gets the figures of the images of all processes.
        """

    @abstractmethod
    def save(self, network: Any, path: Path, notes: dict[str, Any]) -> None:
        """Write a network as a weights file with ``notes`` in its header."""

    def keep_results(self, run: Path, step: int) -> None:
        """Keep what the last validation found, beside the best weights; by default nothing."""
        return

    def log_row(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the log shows of the losses; ``loss`` is their sum."""
        return {"loss": torch.stack(list(losses.values())).sum()}


class InstanceTask(Task):
    """MaskLab with the losses of `TrainingStep`, validated by COCO AP."""

    figure = "mask_AP"
    thread_safe = True
    tuned_images = 30

    def __init__(self, model: MaskLab, val: Split) -> None:
        super().__init__(model, model.config, val)
        self.step = TrainingStep(model)
        self.results: dict[int | str, list[dict[str, Any]]] = {}

    def reconfigure(self, config: Config) -> None:
        super().reconfigure(config)
        self.step.model.config = config  # which its weights file will hold

    def losses(self, batch: Batch, first: int) -> dict[str, Tensor]:
        batch.images = batch.images.contiguous(memory_format=torch.channels_last)
        # samples are a function of seed and position, so that a resumed run draws the same ones
        seed = self.config.train.seed
        return self.step(batch, [_sample_generator(seed, first + i) for i in range(len(batch.targets))])

    def log_row(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        masks = torch.stack([loss for name, loss in losses.items() if name.startswith("mask")]).sum()
        boxes = torch.stack([loss for name, loss in losses.items() if not name.startswith("mask")]).sum()
        each = {f"train/{name}": loss for name, loss in losses.items()}
        return {**super().log_row(losses), **each, "mask": masks, "box": boxes}

    def validate(self, network: MaskLab, indices: Sequence[int]) -> dict[str, float]:
        channels, images = network.config.model.backbone.channels, self.val.images
        predictor = Predictor(network, PredictionOptions(precision=self.config.train.precision))
        check = InputCheck(self.config.image)  # not reported: training and validation read images alike
        results = [
            (i, predictor.predict(self.val.read(i, channels), check=check).to_coco(images[i].image_id)) for i in indices
        ]
        found = dict(sorted(all_gather(results)))
        scored = [images[index].image_id for index in found]
        self.results = dict(zip(scored, found.values(), strict=True))
        entries = [entry for each in found.values() for entry in each]
        metrics = coco_metrics(self.val.truth, entries, network.box_head.max_detections, scored)
        values = {f"val/{t}_{name}": metrics[t][name] for t in ("mask", "box") for name in ("AP", "AP50", "AP75")}
        return {name: math.nan if value is None else value for name, value in values.items()}

    def save(self, network: MaskLab, path: Path, notes: dict[str, Any]) -> None:
        save_model(network, path, notes)

    def keep_results(self, run: Path, step: int) -> None:
        device = next(self.network.parameters()).device
        write_results(run / KEPT, self.results, step, number_format(device, self.config.train.precision))


def _sample_generator(seed: int, position: int) -> torch.Generator:
    """Random numbers for the anchors, proposals and masks sampled from an image at a position of the training stream."""
    state = np.random.SeedSequence([seed, SAMPLING, position]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]) >> 1)
