import json

import numpy as np
import pytest
from contracts import fails
from PIL import Image

from masklab.datasets.split import Split
from masklab.datasets.synthetic.shapes import CLASSES, draw_shapes
from masklab.masks import coco_segmentation, rle
from masklab.utils.errors import InputError


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return draw_shapes(tmp_path_factory.mktemp("shapes") / "set", {"train": 40, "val": 3}, seed=5)


def test_same_seed_same_bytes(drawn, tmp_path):
    again = draw_shapes(tmp_path / "deep" / "again", {"train": 40, "val": 3}, seed=5)
    files = sorted(p.relative_to(drawn) for p in drawn.rglob("*") if p.is_file())
    assert len(files) == 45
    assert files == sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    assert all((drawn / p).read_bytes() == (again / p).read_bytes() for p in files)
    other = draw_shapes(tmp_path / "other", {"train": 1}, seed=6)
    assert (drawn / "train/00001.png").read_bytes() != (other / "train/00001.png").read_bytes()
    assert (drawn / "train/00001.png").read_bytes() != (drawn / "val/00001.png").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "other"]


def test_masks_are_the_visible_parts(drawn):
    split = Split.find(drawn, "train")
    counts = [len(split.objects(index)) for index in range(len(split))]
    assert counts.count(0) == 2
    assert min(c for c in counts if c) >= 2
    assert max(counts) <= 10
    assert not split.skipped
    assert split.categories.names == CLASSES
    touching = 0
    for index in range(len(split)):
        objects, covered = split.objects(index), np.zeros((96, 128), int)
        for row in range(len(objects)):
            covered += rle.window(objects.rle(row), (96, 128), (0, 0, 128, 96))
        assert covered.max(initial=0) <= 1
        boxes = objects.boxes
        left, right = (
            np.maximum(boxes[:, None, :2], boxes[None, :, :2]),
            np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]),
        )
        touching += int((left < right).all(axis=2).sum() - len(boxes))
    assert touching > 40
    labels = np.concatenate([split.objects(index).labels for index in range(len(split))])
    assert np.bincount(labels).min() > 30


def test_objects_differ_from_the_background(drawn):
    split = Split.find(drawn, "train")
    for index in range(5):
        image, objects = split.read(index, 3).astype(float), split.objects(index)
        covered = np.zeros((96, 128), bool)
        for row in range(len(objects)):
            covered |= rle.window(objects.rle(row), (96, 128), (0, 0, 128, 96)) > 0
        evenly_spaced = image.max(axis=0) - image.min(axis=0)
        assert evenly_spaced[covered].mean() > evenly_spaced[~covered].mean() + 20


def test_fields_of_the_json_agree(drawn):
    values = json.loads((drawn / "train.json").read_text())
    for annotation in values["annotations"]:
        runs = coco_segmentation.rle_from_segmentation(annotation["segmentation"], (96, 128))
        x, y, width, height = annotation["bbox"]
        assert rle.area(runs) == annotation["area"] > 0
        assert rle.bounds(runs, (96, 128)) == (x, y, x + width, y + height)
    assert len({a["id"] for a in values["annotations"]}) == len(values["annotations"])


def test_other_sizes_and_no_images(tmp_path):
    folder = draw_shapes(tmp_path / "a", {"train": 2, "val": 0}, size=(64, 48))
    assert Image.open(folder / "train/00001.png").size == (48, 64)
    assert len(Split.find(folder, "val")) == 0


def test_what_exists_is_not_overwritten(tmp_path):
    (tmp_path / "here").mkdir()
    draw_shapes(tmp_path / "here", {"train": 1})
    with pytest.raises(InputError, match=r"here exists and is not empty; name a new folder"):
        draw_shapes(tmp_path / "here", {"train": 1})
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file exists"):
        draw_shapes(tmp_path / "file", {"train": 1})
    with pytest.raises(InputError, match="at least 32 x 32"):
        draw_shapes(tmp_path / "small", {"train": 1}, size=(16, 90))


def test_a_negative_number_of_images_is_refused(tmp_path):
    fails(["val is to have -2 images", "0 or more"], draw_shapes, tmp_path / "set", {"train": 2, "val": -2})
    assert not (tmp_path / "set").exists()
