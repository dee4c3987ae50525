"""Prediction on images with a trained model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from masklab.config.image import ImageConfig
from masklab.config.schema import Config
from masklab.images.exposure import InputCheck, stretched
from masklab.images.reader import ImageReader
from masklab.images.resize import network_image, network_size
from masklab.inference.batches import Prepared, batches_of, image_threads, instances_of, size_of
from masklab.inference.finder import ImageThreads
from masklab.inference.inputs import ImageLike, as_tensor, check_boxes, check_room, opened, read_whole
from masklab.inference.options import PredictionOptions
from masklab.inference.test_time_augmentation import ViewFeatures, detect_in_views, mean_masks
from masklab.inference.tiles.plan import TilePlan, plan_tiles
from masklab.inference.tiles.predict import predict_tiles
from masklab.inference.tiles.segment import segment_tiles
from masklab.inference.tiles.store import TileStore
from masklab.inference.views import PLAIN, View
from masklab.model.fixed_norm import NormStatistics, has_norms_to_fix, measure_norms, with_fixed_norms
from masklab.model.masklab import MaskLab
from masklab.model.mode import evaluation_mode
from masklab.ops.coordinates import padded_size
from masklab.results.instances import Instances
from masklab.structures import ClassTable
from masklab.utils.device import autocast, check_precision
from masklab.utils.errors import InputError
from masklab.utils.types import Size
from masklab.utils.words import counted
from masklab.weights.checkpoint import load_model
from masklab.weights.identity import weights_id


class Predictor:
    """A model with all that leads from images to `Instances`.

    ``model`` is the `torch.nn.Module`, ``options`` are the `PredictionOptions`, and without ``in_tiles`` images of any size are
    taken as a whole.  Every method runs the model in evaluation mode, without gradients and in the precision of the options,
    and puts its mode back, also where several threads run it.

    Raises `InputError` for a precision that the model's device does not have.
    """

    def __init__(self, model: MaskLab, options: PredictionOptions | None = None, in_tiles: bool = True) -> None:
        self.model = model
        self.options = PredictionOptions() if options is None else options
        check_precision(self.options.precision, self.device, "precision")
        self.in_tiles = in_tiles
        self._warned = False

    def __repr__(self) -> str:
        return f"Predictor({counted(len(self.classes), 'class', 'classes')}, threshold {self.threshold:.2f}, on {self.device}; {self.options})"

    @property
    def device(self) -> torch.device:
        """The device that the model is on."""
        return next(self.model.parameters()).device

    @property
    def config(self) -> Config:
        """The configuration that the model was trained with."""
        return self.model.config

    @property
    def classes(self) -> ClassTable:
        """The classes that the model finds."""
        return self.model.classes

    @property
    def threshold(self) -> float:
        """The score from which an object counts as found: that of the options, else the model's tuned one, else 0.5."""
        return self.options.threshold(self.model.score_threshold)

    @property
    def max_detections(self) -> int:
        """The most objects that are found in an image."""
        return self.options.max_detections or self.model.box_head.max_detections

    def image_threads(self) -> AbstractContextManager[ImageThreads]:
        """How images are best predicted at the same time (see `image_threads`)."""
        return image_threads(self.device)

    def tile_plan(self, size: Size) -> TilePlan | None:
        """The tiles for an image of ``size``, None for one that is taken as a whole (see `plan_tiles`)."""
        return plan_tiles(self.model, size) if self.in_tiles else None

    def input_check(self) -> InputCheck:
        """A new check of images, and of what is found in them, against what the model was trained on."""
        return InputCheck(self.config.image, self.model.training_data)

    @overload
    def predict(  # type: ignore[overload-overlap]
        self, images: ImageLike, batch_size: int = ..., check: InputCheck | None = ...
    ) -> Instances: ...

    @overload
    def predict(
        self, images: Sequence[ImageLike], batch_size: int = ..., check: InputCheck | None = ...
    ) -> list[Instances]: ...

    def predict(self, images: Any, batch_size: int = 8, check: InputCheck | None = None) -> Any:
        """Find the objects of an image, or of each image of a list.

        An image is a file, a Pillow image of any mode, uint8, uint16 or float32 values ``(C, H, W)``, or one that is open.
        Its intensities are rescaled as the options say, and it is resized and normalised as in training; an image larger
        than the model's tile is read and predicted in tiles (see `tile_plan`).  Returns one `Instances` per image, in the
        image's own pixels, best first; ``instances.above(predictor.threshold)`` are those that count as found.  The others
        are there for average precision; without them (``min_score`` of the options) an image takes less time.

        Images of a list whose padded network inputs have the same size share a forward pass, at most ``batch_size``
        of them and at most about one megapixel together.  With test-time augmentation there is one image at a time.

        Images that are far from what the model expects, in intensity, colour or the size of what is found, are counted in
        ``check``, which the caller reports; without one, a warning is logged after the first call with such images.

        Raises `InputError` for an image that cannot be read and for a ``batch_size`` below 1.
        """
        if check is None:
            check = self.input_check()
            found = self.predict(images, batch_size, check)
            self._warned = self._warned or check.warn()
            return found
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}: give 1 or more.")
        if not isinstance(images, (list, tuple)):
            return self.predict([images], batch_size, check)[0]
        in_order: list[Instances | None] = [None] * len(images)
        names = [f"image {row + 1}" for row in range(len(images))]
        whole = self._whole_images(images, check, in_order, names)
        if self.options.plain:
            for batch in batches_of(((row, self._prepare(values)) for row, values in whole), batch_size):
                for row, instances in self._forward(batch):
                    in_order[row] = instances
        else:
            for row, values in whole:
                in_order[row] = self._predict_views(values)
        for name, found in zip(names, in_order, strict=True):
            if name and found is not None:
                check.add_boxes(found.above(self.threshold).boxes, found.size, name)
        return in_order

    def predict_reader(
        self, image: ImageReader, check: InputCheck | None = None, store: TileStore | None = None
    ) -> Instances:
        """Find the objects of an image that is open, whole or in tiles (see `masklab.inference.tiles.predict`).

        ``store`` keeps what is found in tiles, so that a prediction that was stopped goes on.  Otherwise as `predict`.
        """
        plan = self.tile_plan(image.size)
        if plan is None:
            own = check if check is None or image.path is None else check.of(image.path)
            return self.predict(read_whole(image), check=own)
        return predict_tiles(self, image, plan, store, check)

    def segment(
        self,
        image: ImageLike,
        boxes: np.ndarray | Tensor,
        labels: np.ndarray | Tensor | None = None,
        scores: np.ndarray | Tensor | None = None,
    ) -> Instances:
        """Masks of objects whose boxes are known, from any detector, in an image of any size.

        ``boxes`` is ``(n, 4)`` ``xyxy`` in the image's own pixels, ``labels`` ``(n,)`` in ``0..K-1``, or None for a model
        of one class, and ``scores`` ``(n,)``, or None for 1; arrays, or tensors on any device, such as torchvision's
        ``found["boxes"], found["labels"] - 1, found["scores"]``.  Returns `Instances` in the order of the boxes, which
        are clipped to the image.  Raises `InputError` for an image that cannot be read and as `check_boxes` does.
        """
        with opened(image, self.config.model.backbone.channels) as reader:
            given = check_boxes(boxes, labels, scores, len(self.classes), reader.size)
            plan = self.tile_plan(reader.size)
            if plan is not None:
                return segment_tiles(self, reader, plan, *(part.numpy() for part in given))
            values = self._read(image if isinstance(image, Tensor) else read_whole(reader))
        corners, classes, probabilities = given[0].to(self.device), given[1].to(self.device), given[2]
        with self.inference():
            views = (self._view_features(values, view) for view in self.options.views)
            masks = mean_masks(self.model, views, corners, classes, size_of(values))
        return instances_of(values, (corners, probabilities, classes), masks, self.classes)

    def propose(self, image: ImageLike) -> Tensor:
        """Region proposals ``(R, 4)`` for an image, in its own pixels, best first; without test-time augmentation."""
        values = self._read(image)
        with self.inference():
            inputs, sizes = self.network_input(values)
            found = self.model.rpn.propose(self.model.rpn(self.model.backbone(inputs).conv4), sizes)
        height, width = sizes[0].tolist()
        return PLAIN.to_image(found.boxes[0, : int(found.num_valid[0])], size_of(values), (height, width)).cpu()

    def network_input(self, image: Tensor, view: View = PLAIN) -> tuple[Tensor, Tensor]:
        """An image (C, H, W) of any dtype as a padded batch of one, (1, C, h, w), and its size before padding, (1, 2)."""
        _, inputs, size = self._prepare(image, view)
        return inputs[None].to(memory_format=torch.channels_last), torch.tensor([size], device=inputs.device)

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Evaluation mode, no gradients, and the precision of the options; the model's mode is put back."""
        with evaluation_mode(self.model), torch.inference_mode(), autocast(self.device, self.options.precision):
            yield

    def image_config(self, image: Tensor | np.ndarray) -> ImageConfig:
        """How the intensities of an image (C, H, W) are rescaled: as in training, or stretched if the options say so."""
        return self.config.image if self.options.intensity == "model" else stretched(image, self.config.image)

    @property
    def has_norms(self) -> bool:
        return has_norms_to_fix(self.model)

    def measure_norms(self, images: Sequence[np.ndarray], config: ImageConfig) -> NormStatistics:
        """Statistics of norms over parts ``(C, H, W)`` of one image; see `masklab.inference.finder.ObjectFinder`."""
        inputs = torch.stack([network_image(torch.from_numpy(image), config) for image in images])
        with self.inference():
            return measure_norms(self.model, inputs.to(self.device, memory_format=torch.channels_last))

    def on_tiles(self, config: Config, options: PredictionOptions, statistics: NormStatistics) -> Predictor:
        """The same weights for tiles of one image, with its statistics of norms."""
        model = with_fixed_norms(self.model, statistics)
        model.config = config
        return Predictor(model, options, in_tiles=False)

    def weights_id(self) -> str:
        return weights_id(self.model)

    def _read(self, image: ImageLike) -> Tensor:
        return as_tensor(image, self.config.model.backbone.channels)

    def _whole_images(
        self, images: Sequence[ImageLike], check: InputCheck, results: list[Instances | None], names: list[str]
    ) -> Iterator[tuple[int, Tensor]]:
        """The images that are predicted as a whole, with their positions; the results of others go to ``results``, without a name."""
        for row, image in enumerate(images):
            with opened(image, self.config.model.backbone.channels) as reader:
                if self.tile_plan(reader.size) is not None:
                    names[row], results[row] = "", self.predict_reader(reader, check)
                    continue
                values = self._read(image if isinstance(image, Tensor) else read_whole(reader))
            names[row] = str(reader.path or names[row])
            if self.options.intensity == "model":
                check.add(values, names[row])
            yield row, values

    def _prepare(self, image: Tensor, view: View = PLAIN) -> Prepared:
        check_room(network_size(size_of(image), self.config.image, view.scale), self.device.type)
        inputs = view.show(network_image(image, self.image_config(image), view.scale))
        size = size_of(inputs)
        height, width = padded_size(size, self.model.stride)
        inputs = F.pad(inputs, (0, width - size[1], 0, height - size[0]))
        return Prepared(image, inputs.to(self.device), size)

    def _forward(self, batch: list[tuple[int, Prepared]]) -> Iterator[tuple[int, Instances]]:
        """The results of images of one padded size by one forward pass."""
        with self.inference():
            inputs = torch.stack([prepared.inputs for _, prepared in batch])
            sizes = torch.tensor([prepared.size for _, prepared in batch], device=inputs.device)
            inputs = inputs.to(memory_format=torch.channels_last)
            found = self.model(inputs, sizes, self.options.max_detections, self.options.min_score)
        for n, (row, (image, _, size)) in enumerate(batch):
            count = int(found.num_valid[n])
            boxes = PLAIN.to_image(found.boxes[n, :count], size_of(image), size)
            detected = (boxes, found.scores[n, :count], found.labels[n, :count])
            yield row, instances_of(image, detected, found.masks[n, :count], self.classes)

    def _predict_views(self, image: Tensor) -> Instances:
        """The result of test-time augmentation: fused boxes, and the mean of the masks that each view makes of them."""
        with self.inference():
            views = [self._view_features(image, view) for view in self.options.views]
            fused = detect_in_views(self.model, views, size_of(image), self.options)
            masks = mean_masks(self.model, views, fused[0], fused[2], size_of(image))
        return instances_of(image, fused, masks, self.classes)

    def _view_features(self, image: Tensor, view: View) -> ViewFeatures:
        inputs, sizes = self.network_input(image, view)
        return ViewFeatures(view, inputs, (int(sizes[0, 0]), int(sizes[0, 1])), self.model.features(inputs))


def load(
    model: str | Path, device: str | torch.device | None = None, options: PredictionOptions | None = None
) -> Predictor:
    """Load a `Predictor` from a run folder, a weights file or by the name of a model that comes with the package.

    Its ``model`` is on ``device``, by default a GPU if there is one.  Raises `InputError` as
    `masklab.weights.checkpoint.load_model` does, and for a precision that the device does not have.
    """
    return Predictor(load_model(model, device), options)
