"""Data structures shared by the parts: training targets, batches, detections, class tables.

Letters for shapes, here and everywhere: N images, C channels, H x W pixels, R boxes, G annotated
objects, M masks, K classes, P samples per side of a mask.  Boxes are ``xyxy`` in pixels, x right, y down: a box
that covers exactly the pixel in row 0, column 0 is ``(0, 0, 1, 1)``.  Sizes are ``(height, width)``.
Labels run over ``0..K-1``; background never appears.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from masklab.utils.errors import InputError

if TYPE_CHECKING:  # classes are read without torch too
    import torch
    from torch import Tensor


@dataclass
class Targets:
    """The annotated objects of one image, in the pixels of the network's input.

    =============  ==============  =======  ==================================================
    name           shape           dtype    meaning
    =============  ==============  =======  ==================================================
    ``boxes``      ``(G, 4)``      float32  ``xyxy``, positive area
    ``labels``     ``(G,)``        int64    ``0..K-1``
    ``masks``      ``(M, P, P)``   float32  soft masks in ``[0, 1]``, each cropped to its mask box
    ``mask_boxes`` ``(M, 4)``      float32  the object's box, or one near it (``box_jitter``)
    ``mask_rows``  ``(M,)``        int64    the row of ``boxes`` that each mask belongs to
    ``ignored``    ``(I, 4)``      float32  crowd regions: neither object nor background
    =============  ==============  =======  ==================================================

    Only the ``M <= G`` objects whose masks the step will use carry one.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor
    mask_boxes: Tensor
    mask_rows: Tensor
    ignored: Tensor

    def to(self, device: torch.device | str) -> Targets:
        return Targets(**{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})


@dataclass
class Batch:
    """Images padded to one size, and their targets.

    ``images`` is ``(N, C, H, W)`` float32, normalised; ``sizes`` is ``(N, 2)`` int64, each image's
    ``(height, width)`` before padding at the bottom and right; ``targets`` has one entry per image;
    ``image_ids`` are the data set's own identifiers, for messages.
    """

    images: Tensor
    sizes: Tensor
    targets: list[Targets]
    image_ids: list[int | str]

    def to(self, device: torch.device | str) -> Batch:
        return Batch(
            self.images.to(device, non_blocking=True),
            self.sizes.to(device, non_blocking=True),
            [target.to(device) for target in self.targets],
            self.image_ids,
        )


@dataclass
class Detections:
    """What the model returns: the first ``num_valid[n]`` rows of image ``n`` are detections, best first.

    ============= =================  =======  ==================================================
    name          shape              dtype    meaning
    ============= =================  =======  ==================================================
    ``boxes``     ``(N, R, 4)``      float32  ``xyxy`` in the pixels of the network's input
    ``scores``    ``(N, R)``         float32  class probability; 0 in the padding
    ``labels``    ``(N, R)``         int64    ``0..K-1``; 0 in the padding
    ``masks``     ``(N, R, P, P)``   float32  probability of foreground over the box
    ``num_valid`` ``(N,)``           int64    number of rows that are detections; the rest is padding
    ============= =================  =======  ==================================================
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor
    num_valid: Tensor


@dataclass(frozen=True)
class ClassTable:
    """The classes of a data set: label ``k`` is the category with id ``ids[k]`` and name ``names[k]``.

    The ids are sorted; they may begin anywhere and have gaps.
    """

    ids: tuple[int, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def labels(self) -> dict[int, int]:
        """Category id to label."""
        return {category: label for label, category in enumerate(self.ids)}

    @classmethod
    def from_categories(cls, categories: Any, source: str | Path) -> ClassTable:
        """Read COCO's ``categories``; `InputError` names ``source`` when they do not form a class table."""
        if not isinstance(categories, list) or not categories:
            raise InputError(f"{source}: categories must be a list with at least one entry; correct the file.")
        table: dict[int, str] = {}
        for entry in categories:
            number = entry.get("id") if isinstance(entry, dict) else None
            named = isinstance(entry, dict) and isinstance(entry.get("name"), (str, int, float))
            if not isinstance(number, int) or isinstance(number, bool) or not named:
                raise InputError(f"{source}: category {entry} needs a whole number id and a name; correct the file.")
            if number in table:
                raise InputError(f"{source}: category id {number} occurs twice; give each category its own id.")
            table[number] = str(entry["name"])
        return cls(tuple(sorted(table)), tuple(table[number] for number in sorted(table)))

    def check_covers(self, other: ClassTable, source: str | Path) -> None:
        """Raise `InputError` naming ``source`` if ``other`` has a category that this table has not."""
        known = dict(zip(self.ids, self.names, strict=True))
        strange = [f"{i} ({n})" for i, n in zip(other.ids, other.names, strict=True) if known.get(i) != n]
        if strange:
            raise InputError(
                f"{source}: category {', '.join(strange[:5])}{' ...' if len(strange) > 5 else ''} "
                "is not in the training set's class table; use the same ids and names in both files."
            )


class Looks(NamedTuple):
    """How the images of a training set look: see `masklab.images.exposure.Appearance` for the terms.

    ``grey`` and ``light`` are the shares of images that are grey, and whose ground is light; all but one image in a
    hundred have at least ``contrast``.
    """

    grey: float
    light: float
    contrast: float


@dataclass(frozen=True)
class TrainingData:
    """What a model was trained on, as far as its use depends on it; in pixels of the original images.

    ``image_size`` is the median (height, width) of the images; ``smallest_object`` and ``largest_object`` are sides of
    boxes: the shorter side that one object in a hundred stays below, and the longest side of all.  ``looks`` is None in
    weights of earlier versions.
    """

    image_size: tuple[int, int]
    smallest_object: float
    largest_object: float
    looks: Looks | None = None
