"""Pairs of an image and the label image that belongs to it, found by their names.

One rule serves all layouts of label images.  Words that only say what a file is are left out of its name: those of
`IMAGE_WORDS` from an image's, those of `MASK_WORDS` from a label image's, at the end after ``_``, ``-``, ``.`` or a
space, or at the beginning, there also directly before a digit.  Files belong together whose names are then the same:
``x.png`` and ``x_label.png``, ``x_rgb.png`` and ``x_label.tif``, ``img_7.png`` and ``mask_7.png``.  Folders are
recognised by the same words, alone or with the name of a split: ``images`` and ``gt``, ``train_images`` and
``train_masks``.  Capitals do not matter.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from pathlib import Path

from masklab.datasets.layouts.base import VAL_NAMES, Pair, image_stem, images_in
from masklab.utils.errors import InputError

IMAGE_WORDS = ("images", "image", "imgs", "img", "raw", "rgb")
MASK_WORDS = (
    *("cp_masks", "masks", "mask", "labels", "label", "ground_truth", "groundtruth", "gt"),
    *("annotations", "annotation", "instances", "instance"),
)
_SPLIT = "|".join(("train", "val", "test", *VAL_NAMES))
_ROLES = {
    role: re.compile(rf"(?:(?P<before>{_SPLIT})[_-])?(?:{'|'.join(words)})(?:[_-](?P<after>{_SPLIT}))?")
    for role, words in (("images", IMAGE_WORDS), ("masks", MASK_WORDS))
}


def folder_role(folder: Path) -> tuple[str, str] | None:
    """What a folder holds by its name, ``"images"`` or ``"masks"``, and the split in its name or ""; None for others."""
    for role, pattern in _ROLES.items():
        match = pattern.fullmatch(folder.name.lower())
        if match and not (match["before"] and match["after"]):
            return role, match["before"] or match["after"] or ""
    return None


def plain_name(path: Path, words: tuple[str, ...]) -> str:
    """The name of a file without suffix and without one of the words at its end or beginning."""
    stem = _stem(path)
    match = _affixes(words).fullmatch(stem)
    return (match["start"] or match["rest"]) if match else stem


@cache
def _affixes(words: tuple[str, ...]) -> re.Pattern[str]:
    word = "|".join(words)
    pattern = rf"(?P<start>.+?)[_\-. ](?:{word})|(?:{word})(?:[_\-. ]|(?=\d))(?P<rest>.+)"
    return re.compile(pattern, re.IGNORECASE | re.DOTALL)


def have_mask_word(names: list[str]) -> bool:
    """Whether a word of `MASK_WORDS` stands anywhere in the names, as where `is_mask_name` holds for one of them."""
    text = "\n".join(names).lower()
    return any(word in text for word in MASK_WORDS)


def is_mask_name(path: Path) -> bool:
    """Whether a word of `MASK_WORDS` stands at the end or the beginning of a file's name."""
    return plain_name(path, MASK_WORDS) != _stem(path)


def is_image_name(path: Path) -> bool:
    """Whether a word of `IMAGE_WORDS` stands at the end or the beginning of a file's name."""
    return plain_name(path, IMAGE_WORDS) != _stem(path)


def is_kaggle_folder(folder: Path) -> bool:
    """Whether a folder holds one image, and masks that are not named after it."""
    if not (folder / "masks").is_dir():
        return False
    images = images_in(folder / "images")
    return len(images) == 1 and not any(
        _stem(images[0]) in (_stem(mask), plain_name(mask, MASK_WORDS)) for mask in images_in(folder / "masks")
    )


def match_masks(images: list[Path], masks: list[Path], where: Path) -> list[Pair]:
    """Each image with the mask of its name; `InputError` for an image without or with two, and a mask without image."""
    named: dict[str, Path] = {}
    for image in images:
        other = named.setdefault(_stem(image), image)
        if other is not image:
            raise InputError(f"{other} and {image.name} would have the same mask: rename or remove one.")
    finder = ImageFinder(images)
    mask_of: dict[Path, Path] = {}
    for mask in masks:
        found = finder.image_of(mask)
        if found is None:
            name = plain_name(mask, MASK_WORDS)
            raise InputError(f"{mask} belongs to an image {name}, which is missing: restore it or move the mask away.")
        if found in mask_of:
            raise InputError(f"{mask_of[found]} and {mask.name} are masks of the same image: remove one.")
        mask_of[found] = mask
    missing = [image for image in images if image not in mask_of]
    if missing:
        raise InputError(
            f"{missing[0]} has no mask in {where} ({len(missing)} of {len(images)} images have none): add the masks, "
            "all zero where there is no object, or move the images away."
        )
    return [Pair(image, (mask_of[image],)) for image in images]


class ImageFinder:
    """Images by their names, as they are and without the words of `IMAGE_WORDS`."""

    def __init__(self, images: list[Path]) -> None:
        self._exact = {_stem(image): image for image in images}
        self._plain = {plain_name(image, IMAGE_WORDS): image for image in reversed(images)}

    def image_of(self, mask: Path) -> Path | None:
        """The image that a label image belongs to; None where there is none."""
        return self.called(_stem(mask), plain_name(mask, MASK_WORDS))

    def called(self, *names: str) -> Path | None:
        """The image of the first of the names that is one's."""
        return next((known[name] for name in names for known in (self._exact, self._plain) if name in known), None)


def _stem(path: Path) -> str:
    return unicodedata.normalize("NFC", image_stem(path))
