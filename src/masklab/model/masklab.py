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

from masklab.config import Config, MaskConfig, ModelConfig
from masklab.errors import InputError
from masklab.hardware import autocast
from masklab.instances import Instances
from masklab.model.backbone import Backbone, Features, build_backbone
from masklab.model.baselines import FCISHead, MaskRCNNHead
from masklab.model.box_classifier import BoxClassifier, BoxDetections
from masklab.model.mask_branch import MaskBranch
from masklab.model.refinement import Refinement, SharedRefinement
from masklab.model.rpn import RPN
from masklab.model.views import PLAIN, SAME_OBJECT, Flips, Found, View, agree, all_views
from masklab.ops.crop import Rois
from masklab.pictures import (
    FULL_RANGE,
    Size,
    from_pillow,
    network_picture,
    padded_size,
    read_picture,
)
from masklab.structures import ClassTable, Detections

BOXES_AT_ONCE = 256
UNTUNED_THRESHOLD = 0.5

MaskHead = MaskBranch | MaskRCNNHead | FCISHead
"""Called once a picture, it gives maps; ``coarse_masks(maps, rois, labels)`` gives mask logits (R, P, P)."""

Picture = str | Path | Image.Image | np.ndarray | Tensor
"""A file, a Pillow picture of any mode, or uint8, uint16 or float32 values ``(C, H, W)``."""


class MaskMaps(NamedTuple):
    """What all masks of some pictures are read from: the maps of the mask branch and those of the refinement."""

    branch: Any
    refinement: list[Tensor]


class Sight(NamedTuple):
    """One view of a picture as the network has it: its ``image`` (1, C, H, W), padded, ``size`` before, and features."""

    view: View
    image: Tensor
    size: Size
    features: Features


class MaskLab(nn.Module):
    """Pictures in, detections with masks out.

    A plain module: ``forward`` is inference and never sees a target.  `masklab.training.TrainingStep` is
    the training over the same parts.  ``config`` and ``classes`` travel with the weights, and so does
    ``score_threshold``, above which an object counts as found: tuned on training pictures, or None.
    """

    def __init__(
        self,
        config: Config,
        classes: ClassTable,
        backbone: Backbone,
        rpn: RPN,
        box_classifier: BoxClassifier,
        mask_branch: MaskHead,
        refinement: Refinement | SharedRefinement | None,
    ) -> None:
        super().__init__()
        self.config = config
        self.classes = classes
        self.score_threshold: float | None = None
        self.backbone = backbone
        self.rpn = rpn
        self.box_classifier = box_classifier
        self.mask_branch = mask_branch
        self.refinement = refinement

    @property
    def stride(self) -> int:
        """Pixels a cell of the coarsest map: inputs are padded to a multiple of it, plus one in ``exact`` mode."""
        return self.config.model.backbone.output_stride

    @property
    def threshold(self) -> float:
        """The score from which an object counts as found: the tuned ``score_threshold``, or 0.5 where there is none."""
        return UNTUNED_THRESHOLD if self.score_threshold is None else self.score_threshold

    def rois(self, boxes: Tensor, pictures: Tensor, images: Tensor) -> Rois:
        """Where pixel boxes (R, 4) of the padded ``images`` (N, C, H, W) lie on every feature map."""
        return Rois.from_pixels(boxes, pictures, (images.shape[-2], images.shape[-1]), self.config.model.coord_mode)

    def forward(self, images: Tensor, sizes: Tensor) -> Detections:
        """Detect and segment.

        ``images`` is ``(N, C, H, W)``, normalised and padded at the bottom and right; ``sizes`` ``(N, 2)``
        is (height, width) before padding.  Returns `Detections`, padded to ``max_detections``.
        """
        features = self.backbone(images)
        boxes = self.detect(features, images, sizes)
        masks = self.masks(self.mask_maps(features), boxes.boxes, boxes.labels, boxes.real, images)
        return Detections(boxes.boxes, boxes.scores, boxes.labels, masks, boxes.real)

    def detect(self, features: Features, images: Tensor, sizes: Tensor) -> BoxDetections:
        """The boxes of `forward`, without masks: proposals, classified and suppressed."""
        proposals = self.rpn.propose(self.rpn(features.conv4), sizes)
        rois = self.rois(proposals.boxes.flatten(0, 1), _owners(proposals.boxes), images)
        return self.box_classifier.detect(self.box_classifier(features.conv4, rois), proposals, sizes)

    def mask_maps(self, features: Features) -> MaskMaps:
        """The part of the masks' work that is done once a picture."""
        refined = [] if self.refinement is None else self.refinement.maps(features)
        return MaskMaps(self.mask_branch(features.conv4), refined)

    def masks(self, maps: MaskMaps, boxes: Tensor, labels: Tensor, count: Tensor, images: Tensor) -> Tensor:
        """Mask probabilities (N, R, P, P) of given boxes (N, R, 4) and labels (N, R); 0 beyond ``count`` (N,).

        Works on a few hundred boxes at a time, so that memory does not grow with their number.
        """
        picture, row = (torch.arange(boxes.shape[1], device=boxes.device) < count[:, None]).nonzero(as_tuple=True)
        crop = self.config.model.mask.crop
        masks = torch.zeros(*boxes.shape[:2], crop, crop, device=boxes.device)
        for some in zip(picture.split(BOXES_AT_ONCE), row.split(BOXES_AT_ONCE), strict=True):
            rois = self.rois(boxes[some], some[0], images)
            mask = self.mask_branch.coarse_masks(maps.branch, rois, labels[some])
            if self.refinement is not None:
                mask = self.refinement(mask, maps.refinement, rois)
            masks[some] = mask.sigmoid()
        return masks

    @overload
    def predict(  # type: ignore[overload-overlap]
        self, pictures: Picture, flips: Flips = ..., scales: Sequence[float] = ...
    ) -> Instances: ...

    @overload
    def predict(
        self, pictures: Sequence[Picture], flips: Flips = ..., scales: Sequence[float] = ...
    ) -> list[Instances]: ...

    def predict(self, pictures: Any, flips: Flips = "none", scales: Sequence[float] = (1.0,)) -> Any:
        """Find the objects of a picture, or of each picture of a list.

        A picture is a file, a Pillow picture of any mode, or uint8, uint16 or float32 values ``(C, H, W)``; its
        numbers become brightness as in training (see `masklab.pictures.brightness`), and it is resized and
        normalised as there.  Returns one `Instances` a picture, in its own pixels, best first; use
        ``instances.above(model.threshold)`` for those that count as found.  Works in evaluation mode
        whatever mode the model is in.  Raises `InputError` for a picture that cannot be read.

        ``flips`` ("none", "horizontal", "both", "turns") and ``scales``, times the model's own, show the network
        several views (see `masklab.model.views`): their boxes are put together, and the masks of the boxes that come
        out are the mean of what each view makes of them.  Time and memory grow with the number of views.
        """
        views = all_views(flips, scales)
        if isinstance(pictures, (list, tuple)):
            return [self.predict(picture, flips, scales) for picture in pictures]
        picture = _as_tensor(pictures, self.config.model.backbone.channels)
        with self.inference():
            found, masks = self._one_view(picture) if views == [PLAIN] else self._many_views(picture, views)
        return self._instances(picture, found, masks)

    def segment(
        self,
        picture: Picture,
        boxes: np.ndarray,
        labels: np.ndarray,
        flips: Flips = "none",
        scales: Sequence[float] = (1.0,),
    ) -> Instances:
        """Masks of objects whose boxes are known.

        ``boxes`` is ``(n, 4)`` ``xyxy`` in the picture's own pixels, ``labels`` ``(n,)`` in ``0..K-1``; ``flips`` and
        ``scales`` are those of `predict`.  Returns `Instances` in the same order, with score 1.
        """
        views = all_views(flips, scales)
        values = _as_tensor(picture, self.config.model.backbone.channels)
        device = next(self.parameters()).device
        given = torch.as_tensor(boxes, dtype=torch.float32, device=device).view(-1, 4)
        classes = torch.as_tensor(labels, dtype=torch.long, device=device)
        with self.inference():
            masks = self._mean_masks((self._look(values, view) for view in views), given, classes, _size(values))
        return self._instances(values, (given, torch.ones(len(classes)), classes), masks)

    def _one_view(self, picture: Tensor) -> tuple[Found, Tensor]:
        """What `forward` finds in a picture, in its own pixels, and the masks (R, P, P)."""
        image, size = self.network_input(picture)
        found = self(image, size)
        count, seen = int(found.count[0]), (int(size[0, 0]), int(size[0, 1]))
        boxes = PLAIN.to_picture(found.boxes[0, :count], _size(picture), seen)
        return (boxes, found.scores[0, :count], found.labels[0, :count]), found.masks[0, :count]

    def _many_views(self, picture: Tensor, views: Sequence[View]) -> tuple[Found, Tensor]:
        """What all views agree on, in the picture's own pixels, and the masks (R, P, P)."""
        sights, found = [self._look(picture, view) for view in views], []
        for view, image, size, features in sights:
            boxes, scores, labels, real = self.detect(features, image, torch.tensor([size], device=image.device))
            count = int(real[0])
            mapped = view.to_picture(boxes[0, :count], _size(picture), size)
            found.append((mapped, scores[0, :count], labels[0, :count]))
        rules = self.config.model.box
        iou = min(rules.nms_iou, SAME_OBJECT)
        agreed = agree(found, iou, rules.score_threshold, self.box_classifier.max_detections)
        return agreed, self._mean_masks(sights, agreed[0], agreed[2], _size(picture))

    def _look(self, picture: Tensor, view: View) -> Sight:
        image, size = self.network_input(picture, view)
        return Sight(view, image, (int(size[0, 0]), int(size[0, 1])), self.backbone(image))

    def _mean_masks(self, sights: Iterable[Sight], boxes: Tensor, labels: Tensor, size: Size) -> Tensor:
        """Masks (R, P, P) of boxes (R, 4) in the pixels of a picture of ``size``: the mean over its sights."""
        count = torch.tensor([len(labels)], device=boxes.device)
        total, views = torch.zeros((), device=boxes.device), 0
        for view, image, seen, features in sights:
            given = view.from_picture(boxes, size, seen)
            maps = self.mask_maps(features)
            total = total + view.undo(self.masks(maps, given[None], labels[None], count, image)[0])
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

    def network_input(self, picture: Tensor, view: View = PLAIN) -> tuple[Tensor, Tensor]:
        """A picture (C, H, W) of any depth as a batch of one, (1, C, H, W), padded, and its size before padding, (1, 2)."""
        config, device = self.config, next(self.parameters()).device
        image = view.show(network_picture(picture, config.pictures, view.scale))
        size = (image.shape[1], image.shape[2])
        height, width = padded_size(size, self.stride, config.model.coord_mode)
        image = F.pad(image, (0, width - size[1], 0, height - size[0]))
        return image[None].to(device, memory_format=torch.channels_last), torch.tensor([size], device=device)

    def _instances(self, picture: Tensor, found: Found, masks: Tensor) -> Instances:
        """What was found in a picture, in its own pixels, with the masks (R, P, P) over the boxes."""
        boxes, scores, labels = found
        return Instances(
            size=_size(picture),
            boxes=boxes.cpu().numpy(),
            scores=scores.cpu().numpy(),
            labels=labels.cpu().numpy(),
            masks=masks.cpu().numpy(),
            class_names=self.classes.names,
            category_ids=self.classes.ids,
            coord_mode=self.config.model.coord_mode,
        )


def build_model(config: Config, classes: ClassTable, load_pretrained: bool = True) -> MaskLab:
    """Build MaskLab as configured, for the classes of a data set.

    ``load_pretrained=False`` leaves the ImageNet weights out, for weights that are loaded afterwards.
    Raises `InputError` for a configuration that cannot be built.
    """
    model, mask, num_classes = config.model, config.model.mask, len(classes)
    if model.num_classes not in (None, num_classes):
        raise InputError(
            f"model.num_classes is {model.num_classes} but the data has {num_classes} categories: leave num_classes out."
        )
    backbone, make_conv5 = build_backbone(model.backbone, load_pretrained)
    channels = backbone.channels
    return MaskLab(
        config,
        classes,
        backbone,
        RPN(model.rpn, channels["conv4"], backbone.strides["conv4"], model.coord_mode),
        BoxClassifier(
            model.box,
            make_conv5(model.box.rates, dense=True, pretrained=model.box.from_imagenet),
            channels["conv4"],
            make_conv5.channels,
            num_classes,
        ),
        _mask_head(model, make_conv5(mask.rates), make_conv5.channels, num_classes),
        _refinement(mask, channels),
    )


def _mask_head(model: ModelConfig, conv5: nn.Module, channels: int, num_classes: int) -> MaskHead:
    if model.mask.head == "mask_rcnn":
        return MaskRCNNHead(model.mask.crop, conv5, channels, round(256 * model.backbone.width), num_classes)
    if model.mask.head == "fcis":
        return FCISHead(model.mask.crop, conv5, channels, num_classes)
    return MaskBranch(model.mask, conv5, channels, num_classes)


def _refinement(mask: MaskConfig, channels: dict[str, int]) -> Refinement | SharedRefinement | None:
    if not mask.refine_levels:
        return None
    kind = SharedRefinement if mask.refinement == "shared" else Refinement
    return kind(mask.refine_levels, channels, mask.refine_channels)


def _size(picture: Tensor) -> Size:
    return picture.shape[1], picture.shape[2]


def _owners(boxes: Tensor) -> Tensor:
    """Which picture each row of (N, R, 4) belongs to: (N * R,)."""
    return torch.arange(boxes.shape[0], device=boxes.device).repeat_interleave(boxes.shape[1])


def _as_tensor(picture: Picture, channels: int) -> Tensor:
    if isinstance(picture, Image.Image):
        picture = from_pillow(picture, channels)
    elif isinstance(picture, (str, Path)):
        picture = read_picture(picture, channels)
    if not isinstance(picture, Tensor):  # numpy's views may run backwards, or in the other order of bytes
        array = np.asarray(picture)
        picture = torch.from_numpy(np.ascontiguousarray(array, array.dtype.newbyteorder("=")))
    values = picture
    if values.dim() == 3 and values.shape[0] == 1 and channels == 3:
        values = values.expand(3, -1, -1)
    if values.dtype not in FULL_RANGE or values.dim() != 3 or values.shape[0] != channels or not values.numel():
        raise InputError(
            f"a picture must be uint8, uint16 or float32 of shape ({channels}, height, width), "
            f"not {values.dtype} of shape {tuple(values.shape)}: convert it or give its file name."
        )
    return values
