"""Result files for COCO's evaluation server, which measured the paper's Tables 7 and 8 on test-dev."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

from masklab.datasets.layouts.coco import listed_images
from masklab.inference.predictor import Predictor
from masklab.utils.errors import InputError
from masklab.utils.files import atomic_write, make_folder
from masklab.utils.leftout import LeftOut
from masklab.utils.progress import track

DETECTIONS = 100
"""Number of detections per image that COCO's server counts."""


def write_submission(predictor: Predictor, listing: str | Path, images: str | Path, output: str | Path) -> list[Path]:
    """Predict the images that the COCO JSON ``listing`` names; returns the paths of the zip of masks and the zip of boxes.

    ``OUTPUT/mask/detections_SPLIT_masklab_results.zip`` and the same under ``box`` hold one JSON list each: the best
    100 detections of each image with the listing's image ids and the training data's category ids.  SPLIT is
    the listing's name without ``image_info_`` or ``instances_``.  Raises `InputError` for a listing that cannot be
    used.  Images that cannot be used are reported and left out, and raise it after all else is written.
    """
    split = Path(listing).stem.removeprefix("image_info_").removeprefix("instances_")
    results: dict[str, list[dict[str, Any]]] = {"mask": [], "box": []}
    listed, left = listed_images(listing, images), LeftOut()
    folders = {kind: make_folder(Path(output) / kind) for kind in results}  # before hours of prediction
    for image in track(listed, "predicting"):
        with left.skipping(image.path):
            found = predictor.predict(image.path)
            if found.size != image.size:
                raise InputError(
                    f"{image.path} has {found.size[0]} x {found.size[1]} pixels but {listing} says "
                    f"{image.size[0]} x {image.size[1]}: name the folder that the list belongs to."
                )
            for entry in found.to_coco(image.image_id)[:DETECTIONS]:
                mask, box = entry.pop("segmentation"), entry.pop("bbox")
                results["mask"].append(entry | {"segmentation": mask})
                results["box"].append(entry | {"bbox": box})
    name = f"detections_{split}_masklab_results"
    written = [_write(folders[kind], name, rows) for kind, rows in results.items()]
    left.refuse(len(listed))
    return written


def _write(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / f"{name}.zip"
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}.json", json.dumps(rows))
    return path
