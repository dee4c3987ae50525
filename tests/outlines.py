"""Images, objects and an independent rasterisation for the tests of layouts whose files hold outlines."""

import numpy as np
from PIL import Image, ImageDraw

from masklab.datasets.open import open_split
from masklab.datasets.problems import CollectingSink
from masklab.masks import rle

SIZE = (240, 320)
FINE = 8  # lines of the independent rasterisation in a pixel

BLOB = [(40.5, 30.25), (180, 22), (260, 90), (215.75, 200), (120, 170), (60, 210)]
STAR = [(200, 40), (300, 60), (250, 120), (310, 220), (180, 190), (90, 230), (140, 130)]
BITMAP = np.random.default_rng(5).random((37, 51)) < 0.6


def image(path, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(list(path.name.encode())).integers(0, 255, (*size, 3), np.uint8)
    Image.fromarray(values).save(path)
    return values


def raster(points, size=SIZE):
    """The pixels whose centre is inside a polygon."""
    fine = Image.new("1", (size[1] * FINE, size[0] * FINE))
    ImageDraw.Draw(fine).polygon([(x * FINE, y * FINE) for x, y in points], fill=1)
    return np.asarray(fine)[FINE // 2 :: FINE, FINE // 2 :: FINE]


def ellipse(cx, cy, rx, ry, degrees=0.0, size=SIZE):
    """The pixels whose centre is inside an ellipse that is turned clockwise."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    angle = np.deg2rad(degrees)
    along = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
    across = (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
    return (along / rx) ** 2 + (across / ry) ** 2 <= 1


def rectangle(x1, y1, x2, y2, size=SIZE):
    return raster([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], size)


def placed(bitmap, left, top, size=SIZE):
    whole = np.zeros(size, bool)
    whole[top : top + bitmap.shape[0], left : left + bitmap.shape[1]] = bitmap[: size[0] - top, : size[1] - left]
    return whole


def opened(folder, split="all"):
    """A split, and what was reported of it as (file name, detail)."""
    sink = CollectingSink()
    found = open_split(folder, split, sink=sink)
    return found, [(problem.file_name, problem.detail) for problem in sink.problems]


def objects(split, name):
    """The objects of the image of a name as (class, mask, crowd), read in a plain way."""
    (entry,) = [one for one in split.coco["images"] if one["file_name"] == name]
    classes = {one["id"]: one["name"] for one in split.coco["categories"]}
    size = entry["height"], entry["width"]
    return [
        (
            classes[one["category_id"]],
            rle.window(rle.rle_from_string(one["segmentation"]["counts"]), size, (0, 0, size[1], size[0])) > 0,
            one["iscrowd"],
        )
        for one in split.coco["annotations"]
        if one["image_id"] == entry["id"]
    ]


def assert_objects(split, name, *wanted):
    """The objects are of these classes and masks ``(class, mask)``, and no crowd regions."""
    found = objects(split, name)
    assert [one[0] for one in found] == [one[0] for one in wanted]
    for (_, mask, crowd), (_, expected) in zip(found, wanted, strict=True):
        assert (mask & expected).sum() >= 0.98 * (mask | expected).sum()
        assert not crowd
