"""A small data set of each layout, to be damaged by `test_fuzz_layouts`: a function that writes it into a folder.

A new layout joins by one line in `SEEDS`, with the function by which its own test writes what the tool writes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import test_convert
import test_fuzz
import test_layouts_coco
import test_unknown
from PIL import Image

from masklab.datasets.convert import convert

Seed = Callable[[Path], object]


def files(contents: dict[str, bytes]) -> Seed:
    return lambda folder: test_fuzz.write_data(folder, contents)


def converted(format: str) -> Seed:
    """What `masklab data convert` writes, copied from where it was written first."""

    def write(folder: Path) -> None:
        source = folder.with_name(f"{folder.name}-source")
        test_convert.dataset(source, test_convert.IMAGES, crowds=[test_convert.ISLAND])
        convert(source, folder, format=format)

    return write


def alone(names: list[str]) -> Seed:
    """Files of tools that are not read, from the tests of their recognition."""

    def write(folder: Path) -> None:
        for name in names:
            path, content, _ = test_unknown.FILES[name]
            test_unknown.put(folder / path, content)
        (folder / "pictures").mkdir()
        Image.new("RGB", (9, 9)).save(folder / "pictures/0.png")

    return write


SEEDS: dict[str, Seed] = {
    "COCO": files(test_fuzz.coco_files()),
    **{f"COCO: {write.__name__.replace('_', ' ')}": write for write in test_layouts_coco.LAYOUTS},
    "YOLO": files(test_fuzz.yolo_files()),
    "label images": files(test_fuzz.label_files("label images")),
    "Cellpose": files(test_fuzz.label_files("Cellpose")),
    "Kaggle": files(test_fuzz.label_files("Kaggle")),
    "converted to YOLO": converted("yolo"),
    "converted to label images": converted("label_images"),
    "other tools": alone(["a VOC box", "panoptic", "CreateML", "CSV", "YOLO without images", "arrays"]),
}
