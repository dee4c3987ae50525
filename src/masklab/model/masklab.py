"""MaskLab: the parts put together, and the function that builds them (paper, section 3)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from masklab.config.schema import Config
from masklab.images.intensity import FULL_RANGE
from masklab.images.read import from_pillow, read_image
from masklab.images.resize import network_image
from masklab.inference.test_time_augmentation import PLAIN, SAME_OBJECT, Detected, Flips, View, all_views, fuse_boxes
from masklab.model.alternatives import FCISHead, MaskRCNNHead
from masklab.model.backbone import Backbone, Features
from masklab.model.box_head import BoxDetections, BoxHead
from masklab.model.mask_head import MaskLabHead
from masklab.model.refinement import Refinement, SharedRefinement
from masklab.model.rpn import RPN
from masklab.ops.coordinates import padded_size
from masklab.ops.rois import Rois
from masklab.results.instances import Instances
from masklab.structures import ClassTable, Detections
from masklab.utils.device import autocast
from masklab.utils.errors import InputError
from masklab.utils.types import Size

BOXES_AT_ONCE = 256
UNTUNED_THRESHOLD = 0.5

MaskHead = MaskLabHead | MaskRCNNHead | FCISHead
"""Called once an image, it gives maps; ``coarse_masks(maps, rois, labels)`` gives mask logits (R, P, P)."""

ImageLike = str | Path | Image.Image | np.ndarray | Tensor
"""A file, a Pillow image of any mode, or uint8, uint16 or float32 values ``(C, H, W)``."""


class MaskMaps(NamedTuple):
    """What all masks of some images are read from: the maps of the mask head and those of the refinement."""

    branch: Any
    refinement: list[Tensor]


class ViewFeatures(NamedTuple):
    """One view of an image as the network has it: its ``inputs`` (1, C, H, W), padded, ``size`` before, and features."""

    view: View
    inputs: Tensor
    size: Size
    features: Features


class MaskLab(nn.Module):
    """Images in, detections with masks out.

    A plain module: ``forward`` is inference and never sees a target.  `masklab.training.TrainingStep` is
    the training over the same parts.  ``config`` and ``classes`` travel with the weights, and so does
    ``score_threshold``, above which an object counts as found: tuned on training images, or None.
    """

    def __init__(
        self,
        config: Config,
        classes: ClassTable,
        backbone: Backbone,
        rpn: RPN,
        box_head: BoxHead,
        mask_head: MaskHead,
        refinement: Refinement | SharedRefinement | None,
    ) -> None:
        super().__init__()
        self.config = config
        self.classes = classes
        self.score_threshold: float | None = None
        self.backbone = backbone
        self.rpn = rpn
        self.box_head = box_head
        self.mask_head = mask_head
        self.refinement = refinement

    @property
    def stride(self) -> int:
        """Pixels a cell of the coarsest map: inputs are padded to a multiple of it plus one."""
        return self.config.model.backbone.output_stride

    @property
    def threshold(self) -> float:
        """The score from which an object counts as found: the tuned ``score_threshold``, or 0.5 where there is none."""
        return UNTUNED_THRESHOLD if self.score_threshold is None else self.score_threshold

    def rois(self, boxes: Tensor, batch_index: Tensor, images: Tensor) -> Rois:
        """Where pixel boxes (R, 4) of the padded ``images`` (N, C, H, W) lie on every feature map."""
        return Rois.from_pixels(boxes, batch_index, (images.shape[-2], images.shape[-1]))

    def forward(self, images: Tensor, sizes: Tensor) -> Detections:
        """Detect and segment.

        ``images`` is ``(N, C, H, W)``, normalised and padded at the bottom and right; ``sizes`` ``(N, 2)``
        is (height, width) before padding.  Returns `Detections`, padded to ``max_detections``.
        """
        features = self.backbone(images)
        boxes = self.detect(features, images, sizes)
        masks = self.masks(self.mask_maps(features), boxes.boxes, boxes.labels, boxes.num_valid, images)
        return Detections(boxes.boxes, boxes.scores, boxes.labels, masks, boxes.num_valid)

    def detect(self, features: Features, images: Tensor, sizes: Tensor) -> BoxDetections:
        """The boxes of `forward`, without masks: proposals, classified and suppressed."""
        proposals = self.rpn.propose(self.rpn(features.conv4), sizes)
        rois = self.rois(proposals.boxes.flatten(0, 1), _batch_index(proposals.boxes), images)
        return self.box_head.detect(self.box_head(features.conv4, rois), proposals, sizes)

    def mask_maps(self, features: Features) -> MaskMaps:
        """The part of the masks' work that is done once an image."""
        refined = [] if self.refinement is None else self.refinement.maps(features)
        return MaskMaps(self.mask_head(features.conv4), refined)

    def masks(self, maps: MaskMaps, boxes: Tensor, labels: Tensor, num_valid: Tensor, images: Tensor) -> Tensor:
        """Mask probabilities (N, R, P, P) of given boxes (N, R, 4) and labels (N, R); 0 beyond ``num_valid`` (N,).

        Works on a few hundred boxes at a time, so that memory does not grow with their number.
        """
        image, row = (torch.arange(boxes.shape[1], device=boxes.device) < num_valid[:, None]).nonzero(as_tuple=True)
        mask_size = self.config.model.mask.mask_size
        masks = torch.zeros(*boxes.shape[:2], mask_size, mask_size, device=boxes.device)
        for some in zip(image.split(BOXES_AT_ONCE), row.split(BOXES_AT_ONCE), strict=True):
            rois = self.rois(boxes[some], some[0], images)
            mask = self.mask_head.coarse_masks(maps.branch, rois, labels[some])
            if self.refinement is not None:
                mask = self.refinement(mask, maps.refinement, rois)
            masks[some] = mask.sigmoid()
        return masks

    @overload
    def predict(  # type: ignore[overload-overlap]
        self, images: ImageLike, flips: Flips = ..., scales: Sequence[float] = ...
    ) -> Instances: ...

    @overload
    def predict(
        self, images: Sequence[ImageLike], flips: Flips = ..., scales: Sequence[float] = ...
    ) -> list[Instances]: ...

    def predict(self, images: Any, flips: Flips = "none", scales: Sequence[float] = (1.0,)) -> Any:
        """Find the objects of an image, or of each image of a list.

        An image is a file, a Pillow image of any mode, or uint8, uint16 or float32 values ``(C, H, W)``; its
        numbers become brightness as in training (see `masklab.images.intensity.brightness`), and it is resized and
        normalised as there.  Returns one `Instances` an image, in its own pixels, best first; use
        ``instances.above(model.threshold)`` for those that count as found.  Works in evaluation mode
        whatever mode the model is in.  Raises `InputError` for an image that cannot be read.

        ``flips`` ("none", "horizontal", "both", "turns") and ``scales``, times the model's own, show the network
        several views (see `masklab.inference.test_time_augmentation`): their boxes are put together, and the masks of the boxes that come
        out are the mean of what each view makes of them.  Time and memory grow with the number of views.
        """
        views = all_views(flips, scales)
        if isinstance(images, (list, tuple)):
            return [self.predict(image, flips, scales) for image in images]
        image = _as_tensor(images, self.config.model.backbone.channels)
        with self.inference():
            found, masks = self._one_view(image) if views == [PLAIN] else self._many_views(image, views)
        return self._instances(image, found, masks)

    def segment(
        self,
        image: ImageLike,
        boxes: np.ndarray,
        labels: np.ndarray,
        flips: Flips = "none",
        scales: Sequence[float] = (1.0,),
    ) -> Instances:
        """Masks of objects whose boxes are known.

        ``boxes`` is ``(n, 4)`` ``xyxy`` in the image's own pixels, ``labels`` ``(n,)`` in ``0..K-1``; ``flips`` and
        ``scales`` are those of `predict`.  Returns `Instances` in the same order, with score 1.
        """
        views = all_views(flips, scales)
        values = _as_tensor(image, self.config.model.backbone.channels)
        device = next(self.parameters()).device
        given = torch.as_tensor(boxes, dtype=torch.float32, device=device).view(-1, 4)
        classes = torch.as_tensor(labels, dtype=torch.long, device=device)
        with self.inference():
            masks = self._mean_masks((self._look(values, view) for view in views), given, classes, _size(values))
        return self._instances(values, (given, torch.ones(len(classes)), classes), masks)

    def _one_view(self, image: Tensor) -> tuple[Detected, Tensor]:
        """What `forward` finds in an image, in its own pixels, and the masks (R, P, P)."""
        inputs, size = self.network_input(image)
        found = self(inputs, size)
        count, seen = int(found.num_valid[0]), (int(size[0, 0]), int(size[0, 1]))
        boxes = PLAIN.to_image(found.boxes[0, :count], _size(image), seen)
        return (boxes, found.scores[0, :count], found.labels[0, :count]), found.masks[0, :count]

    def _many_views(self, image: Tensor, views: Sequence[View]) -> tuple[Detected, Tensor]:
        """What all views agree on, in the image's own pixels, and the masks (R, P, P)."""
        sights, found = [self._look(image, view) for view in views], []
        for view, inputs, size, features in sights:
            boxes, scores, labels, num_valid = self.detect(features, inputs, torch.tensor([size], device=inputs.device))
            count = int(num_valid[0])
            mapped = view.to_image(boxes[0, :count], _size(image), size)
            found.append((mapped, scores[0, :count], labels[0, :count]))
        rules = self.config.model.box
        iou = min(rules.nms_iou, SAME_OBJECT)
        agreed = fuse_boxes(found, iou, rules.score_threshold, self.box_head.max_detections)
        return agreed, self._mean_masks(sights, agreed[0], agreed[2], _size(image))

    def _look(self, image: Tensor, view: View) -> ViewFeatures:
        inputs, size = self.network_input(image, view)
        return ViewFeatures(view, inputs, (int(size[0, 0]), int(size[0, 1])), self.backbone(inputs))

    def _mean_masks(self, sights: Iterable[ViewFeatures], boxes: Tensor, labels: Tensor, size: Size) -> Tensor:
        """Masks (R, P, P) of boxes (R, 4) in the pixels of an image of ``size``: the mean over its sights."""
        count = torch.tensor([len(labels)], device=boxes.device)
        total, views = torch.zeros((), device=boxes.device), 0
        for view, inputs, seen, features in sights:
            given = view.from_image(boxes, size, seen)
            maps = self.mask_maps(features)
            total = total + view.undo(self.masks(maps, given[None], labels[None], count, inputs)[0])
            views += 1
        return total / views

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Evaluation mode, no gradients, and the number format of the configuration; the mode is put back."""
        was_training = self.training
        self.eval()
        try:
            with torch.inference_mode(), autocast(next(self.parameters()).device, self.config.train.precision):
                yield
        finally:
            self.train(was_training)

    def network_input(self, image: Tensor, view: View = PLAIN) -> tuple[Tensor, Tensor]:
        """An image (C, H, W) of any depth as a batch of one, (1, C, H, W), padded, and its size before padding, (1, 2)."""
        config, device = self.config, next(self.parameters()).device
        inputs = view.show(network_image(image, config.image, view.scale))
        size = (inputs.shape[1], inputs.shape[2])
        height, width = padded_size(size, self.stride)
        inputs = F.pad(inputs, (0, width - size[1], 0, height - size[0]))
        return inputs[None].to(device, memory_format=torch.channels_last), torch.tensor([size], device=device)

    def _instances(self, image: Tensor, found: Detected, masks: Tensor) -> Instances:
        """What was found in an image, in its own pixels, with the masks (R, P, P) over the boxes."""
        boxes, scores, labels = found
        return Instances(
            size=_size(image),
            boxes=boxes.cpu().numpy(),
            scores=scores.cpu().numpy(),
            labels=labels.cpu().numpy(),
            masks=masks.cpu().numpy(),
            class_names=self.classes.names,
            category_ids=self.classes.ids,
        )


def _size(image: Tensor) -> Size:
    return image.shape[1], image.shape[2]


def _batch_index(boxes: Tensor) -> Tensor:
    """Which image each row of (N, R, 4) belongs to: (N * R,)."""
    return torch.arange(boxes.shape[0], device=boxes.device).repeat_interleave(boxes.shape[1])


def _as_tensor(image: ImageLike, channels: int) -> Tensor:
    if isinstance(image, Image.Image):
        image = from_pillow(image, channels)
    elif isinstance(image, (str, Path)):
        image = read_image(image, channels)
    if not isinstance(image, Tensor):  # numpy's views may run backwards, or in the other order of bytes
        array = np.asarray(image)
        image = torch.from_numpy(np.ascontiguousarray(array, array.dtype.newbyteorder("=")))
    values = image
    if values.dim() == 3 and values.shape[0] == 1 and channels == 3:
        values = values.expand(3, -1, -1)
    if values.dtype not in FULL_RANGE or values.dim() != 3 or values.shape[0] != channels or not values.numel():
        raise InputError(
            f"an image must be uint8, uint16 or float32 of shape ({channels}, height, width), "
            f"not {values.dtype} of shape {tuple(values.shape)}: convert it or give its file name."
        )
    return values
