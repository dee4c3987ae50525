"""nnU-Net: ``imagesTr/x_0000.png`` with the label image ``labelsTr/x.png``, whose numbers are objects."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from masklab.datasets.layouts.base import Layout, Pair, SplitSource, image_stem, images_in
from masklab.datasets.layouts.masks import label_objects
from masklab.utils.errors import InputError

_SPLITS = {"Tr": "train", "Val": "val", "Ts": "test"}
_VOLUMES = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".nhdr")


def _find(folder: Path) -> dict[str, SplitSource]:
    """The splits that have images and labels; ``imagesTs`` without ``labelsTs`` is none.

    Raises `InputError` for volumes.
    """
    if not (folder / "imagesTr").is_dir() or not (folder / "labelsTr").is_dir():
        return {}
    volume = next((path for path in sorted((folder / "imagesTr").iterdir()) if _is_volume(path)), None)
    if volume:
        raise InputError(f"{volume} is a volume, but masklab reads flat images: save its slices as PNG or TIFF.")
    places = {split: (folder / f"images{ending}", folder / f"labels{ending}") for ending, split in _SPLITS.items()}
    return {
        split: SplitSource(partial(_pairs, images, labels), label_objects)
        for split, (images, labels) in places.items()
        if split == "train" or (images_in(images) and images_in(labels))
    }


def _is_volume(path: Path) -> bool:
    return path.name.lower().endswith(_VOLUMES)


def _pairs(images: Path, labels: Path) -> list[Pair]:
    """Each label image with its image; `InputError` for files without the other and for several channels."""
    paths = images_in(images)
    second = next((path for path in paths if image_stem(path).endswith("_0001")), None)
    if second:
        raise InputError(
            f"{second} is a second channel of an image in files of their own: save all channels of an image in one TIFF."
        )
    image_of = {image_stem(path).removesuffix("_0000"): path for path in paths}
    label_of = {image_stem(path): path for path in images_in(labels)}
    for one, other, places in ((image_of, label_of, (images, labels)), (label_of, image_of, (labels, images))):
        alone = sorted(one.keys() - other.keys())
        if alone:
            raise InputError(
                f"{one[alone[0]]} has no counterpart {alone[0]} in {places[1]} ({len(alone)} of {len(one)} files have "
                "none): restore it or move the file away."
            )
    if not image_of:
        raise InputError(f"{images} holds no PNG, TIFF or other flat image: save the images as such.")
    return [Pair(image, (label_of[name],)) for name, image in image_of.items()]


NNUNET = Layout("nnunet", "nnU-Net (imagesTr, labelsTr)", _find)
