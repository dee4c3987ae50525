"""Predicting pictures from files into a folder of results."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from masklab.errors import InputError
from masklab.files import make_folder, whole
from masklab.model.masklab import MaskLab
from masklab.model.views import Flips, all_views
from masklab.pictures import displayed, list_pictures, read_picture
from masklab.progress import track
from masklab.visualize import overlay


def predict_folder(
    model: MaskLab,
    sources: Sequence[str | Path],
    output: str | Path,
    min_score: float | None = None,
    flips: Flips = "none",
    scales: Sequence[float] = (1.0,),
) -> Path:
    """Predict pictures and folders of pictures; returns the path of ``predictions.json``.

    ``predictions.json`` is a COCO results list: every detection, ``segmentation`` as run lengths at the
    picture's own size, the data set's own category ids; ``image_id`` is the number that the file is named
    by, as in COCO, or its name, and ``file_name`` stands beside.  Each picture also gets an overlay of the
    objects with at least ``min_score``, by default the model's own threshold.  ``flips`` and ``scales`` are
    those of `MaskLab.predict`.

    Pictures that cannot be read are named and left out; the others are written, then `InputError` is raised.
    """
    all_views(flips, scales)  # refused before anything is written
    pictures = [picture for source in sources for picture in list_pictures(source)]
    _refuse_namesakes(pictures)
    min_score = model.threshold if min_score is None else min_score
    output = make_folder(output)
    _spare_sources(pictures, output)
    results: list[dict[str, Any]] = []
    broken = shown = capped = 0
    for path in track(pictures, "predicting"):
        try:
            picture = read_picture(path, model.config.model.backbone.channels)
            shown_picture = displayed(picture, model.config.pictures, path)
        except InputError as error:
            print(f"masklab: {error}", file=sys.stderr)
            broken += 1
            continue
        instances = model.predict(picture, flips, scales)
        drawn = len(instances.above(min_score))
        capped += drawn == model.box_classifier.max_detections
        shown += drawn
        image_id = int(path.stem) if path.stem.isdecimal() else path.name
        results += [entry | {"file_name": path.name} for entry in instances.to_coco(image_id)]
        with whole(output / f"{path.stem}.png") as beside:
            overlay(shown_picture, instances, min_score).save(beside, "PNG")
    target = output / "predictions.json"
    with whole(target) as beside:
        beside.write_text(json.dumps(results))
    print(
        f"{len(pictures) - broken} pictures, {shown} objects of score {min_score:.2f} or more "
        f"({len(results)} detections in all): {target} and an overlay each"
    )
    if capped:
        print(
            f"{capped} of {len(pictures)} pictures reached the cap of {model.box_classifier.max_detections} objects, so "
            "others may be missing: predict again with a larger --max_detections."
        )
    if broken:
        raise InputError(f"{broken} of {len(pictures)} pictures could not be read: replace those named above.")
    return target


def _spare_sources(pictures: list[Path], output: Path) -> None:
    """Refuse to write an overlay over one of the pictures."""
    for path in pictures:
        overlay_path = output / f"{path.stem}.png"
        if overlay_path.exists() and overlay_path.samefile(path):
            raise InputError(f"the overlay of {path} would be written over it: name another --output.")


def _refuse_namesakes(pictures: list[Path]) -> None:
    """Refuse two pictures of one overlay or, such as 1.png and 01.png, of one image id."""
    seen: dict[int | str, Path] = {}
    for path in pictures:
        name = int(path.stem) if path.stem.isdecimal() else path.stem
        if name in seen:
            raise InputError(f"{seen[name]} and {path} would write the same results: predict them into two folders.")
        seen[name] = path
