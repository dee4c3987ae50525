"""Data that are well-formed but can hardly be meant: each is drawn, found by `data check`, and said before training."""

import json
import logging

import numpy as np
import pytest
import tifffile
from PIL import Image

from masklab.config.image import ImageConfig
from masklab.config.recipe import load_recipe
from masklab.datasets.check import check
from masklab.datasets.open import open_split
from masklab.datasets.plausibility import look_at
from masklab.datasets.problems import KEPT, STOPS
from masklab.training import judge
from masklab.training.judge import judge_data
from masklab.training.train import train
from masklab.utils.errors import InputError

SIZE = (64, 80)


def square(y, x, side=9):
    return [x, y, x + side, y, x + side, y + side, x, y + side]


def noise(seed, size=SIZE, low=0, high=256, channels=3):
    values = np.random.default_rng(seed).integers(low, high, (*size, channels), np.uint16)
    return values.astype(np.uint8) if high <= 256 else values


def draw(folder, images=noise, segmentation=None, fields=None, counts=(8, 4), splits=("train", "val")):
    """A COCO folder with three objects of one class in each image, or as the arguments say for each image number."""
    number = 0
    for split, count in zip(splits, counts, strict=True):
        (folder / split).mkdir(parents=True)
        entries, annotations = [], []
        for k in range(count):
            number += 1
            values = images(number + 100 * (split != splits[0]))
            name = f"{k}.{'png' if values.dtype == np.uint8 else 'tif'}"
            if values.dtype == np.uint8:
                Image.fromarray(values.squeeze()).save(folder / split / name)
            else:
                tifffile.imwrite(folder / split / name, values.squeeze())
            entries.append({"id": k + 1, "file_name": name, "height": values.shape[0], "width": values.shape[1]})
            drawn = segmentation or [[square(3, 3)], [square(20, 30)], [square(40, 50)]]
            for polygons in drawn:
                own = {"id": len(annotations) + 1, "image_id": k + 1, "category_id": 1, "segmentation": polygons}
                annotations.append(own | {"iscrowd": 0} | (fields or {}))
        values = {"images": entries, "annotations": annotations, "categories": [{"id": 1, "name": "cell"}]}
        (folder / f"{split}.json").write_text(json.dumps(values))
    return folder


def edit(folder, split, change):
    values = json.loads((folder / f"{split}.json").read_text())
    change(values)
    (folder / f"{split}.json").write_text(json.dumps(values))


def checked(folder):
    """Split and problem of every finding, and the detail of the last."""
    findings = check(folder).findings
    return [(f.split, f.problem) for f in findings], findings[-1].detail if findings else ""


def said(folder, caplog, rule=None):
    """What is logged before training."""
    caplog.clear()
    caplog.set_level(logging.INFO, "masklab")
    first = open_split(folder, "train")
    judge_data(first, open_split(folder, "val", first.categories), rule or ImageConfig())
    return [record.getMessage() for record in caplog.records]


def test_nothing_is_said_of_ordinary_data(tmp_path, caplog):
    draw(tmp_path)
    assert checked(tmp_path) == ([], "")
    assert said(tmp_path, caplog) == []


MANY = [square(y, x, 6) for y in (2, 20, 40) for x in (2, 20, 40, 60)]


def test_one_mask_for_all_objects(tmp_path, caplog):
    draw(tmp_path, segmentation=[MANY])
    found, detail = checked(tmp_path)
    assert found == [("train", "objects in many pieces"), ("val", "objects in many pieces")]
    assert check(tmp_path).fault is None, "training is not stopped"
    assert "4 of 4 masks lie in 4 or more separate pieces (such as 0.png: 12)" in detail
    assert "--split_components" in detail
    assert [line.split(": ")[0] for line in said(tmp_path, caplog)] == ["train", "val"]


def test_semantic_masks_of_several_classes(tmp_path):
    draw(tmp_path, segmentation=[MANY[:5], MANY[5:10], MANY[10:]])
    assert checked(tmp_path)[0] == [("train", "objects in many pieces"), ("val", "objects in many pieces")]


@pytest.mark.parametrize("pieces", [2, 3])
def test_occluded_objects_are_no_alarm(tmp_path, caplog, pieces):
    draw(tmp_path, segmentation=[MANY[:pieces], MANY[3 : 3 + pieces], MANY[9 : 9 + pieces]])
    assert checked(tmp_path)[0] == []
    assert said(tmp_path, caplog) == []


@pytest.mark.parametrize(("side", "speck"), [(30, 3), (5, 1)])
def test_specks_beside_an_object_are_no_pieces(tmp_path, side, speck):
    specks = [[x, 60, x + speck, 60, x + speck, 62, x, 62] for x in range(4, 70, 8)]
    draw(tmp_path, segmentation=[[square(5, 5, side), *specks]])
    assert checked(tmp_path)[0] == []


EVERYTHING = [0, 0, 80, 0, 80, 64, 0, 64]


@pytest.mark.parametrize("others", [[], [[square(3, 3)], [square(20, 30)]]])
def test_a_background_that_is_an_object(tmp_path, caplog, others):
    draw(tmp_path, segmentation=[[EVERYTHING], *others])
    found, detail = checked(tmp_path)
    assert found == [("train", "objects that cover the image"), ("val", "objects that cover the image")]
    assert "4 of 4 images" in detail
    assert any("background" in line for line in said(tmp_path, caplog))


@pytest.mark.parametrize(
    "outline", [[2, 2, 78, 2, 78, 62, 2, 62], [0, 0, 80, 0, 80, 6, 6, 6, 6, 64, 0, 64]], ids=["inside", "thin"]
)
def test_objects_that_are_large_or_long_are_no_alarm(tmp_path, outline):
    draw(tmp_path, segmentation=[[outline]])
    assert checked(tmp_path)[0] == []


def test_some_close_ups_are_no_alarm(tmp_path):
    draw(tmp_path)
    extra = {"id": 1000, "image_id": 1, "category_id": 1, "segmentation": [EVERYTHING]}
    edit(tmp_path, "train", lambda v: v["annotations"].extend([extra, {**extra, "id": 1001, "image_id": 2}]))
    assert checked(tmp_path)[0] == []


def test_dark_images(tmp_path, caplog):
    draw(tmp_path, lambda k: noise(k, high=16))
    found, detail = checked(tmp_path)
    assert found == [("train", "images of nearly one value"), ("val", "images of nearly one value")]
    assert "4 of 4 images span less than 20 of 255 levels" in detail
    assert any("image.value_range" in line for line in said(tmp_path, caplog))
    assert said(tmp_path, caplog, ImageConfig(percentiles=(1, 99))) == []


def test_some_dark_images_are_no_alarm(tmp_path):
    draw(tmp_path, lambda k: noise(k, high=16 if k % 4 == 0 else 256), counts=(8, 8))
    assert checked(tmp_path)[0] == []


def test_images_of_one_value(tmp_path):
    draw(tmp_path, lambda k: np.full((*SIZE, 1), 40000 + k, np.uint16))
    assert ("train", "images of nearly one value") in checked(tmp_path)[0]


def test_12_bits_in_a_file_of_16(tmp_path, caplog):
    draw(tmp_path, lambda k: noise(k, high=4096, channels=1))
    assert checked(tmp_path)[0] == [], "training stretches them"
    assert said(tmp_path, caplog, ImageConfig(percentiles=(0.1, 99.9))) == []
    assert said(tmp_path, caplog, ImageConfig(value_range=(0, 4095))) == []
    assert "train: images of nearly one value" in said(tmp_path, caplog, ImageConfig(value_range=(0, 65535)))[0]


SOURCES = {
    "side in pixels": lambda k: noise(k, (128, 160)),
    "brightness": lambda k: noise(k, low=200),
    "grey": lambda k: noise(k, channels=1),
    "uint16": lambda k: noise(k, high=60000),
}


@pytest.mark.parametrize("words", SOURCES)
def test_val_of_another_source(tmp_path, caplog, words):
    draw(tmp_path, lambda k: SOURCES[words](k) if k > 100 else noise(k))
    found, detail = checked(tmp_path)
    assert found == [("val", "other images than train")]
    assert words in detail
    assert "in val" in detail or "of val" in detail
    assert words in said(tmp_path, caplog)[-1]


def test_mixed_sources_in_both_splits_are_no_alarm(tmp_path, caplog):
    kinds = list(SOURCES.values())[:3]
    draw(tmp_path, lambda k: kinds[k % 3](k), counts=(12, 6))
    assert checked(tmp_path)[0] == []
    assert said(tmp_path, caplog) == []


@pytest.mark.parametrize("words", ["side in pixels", "brightness", "grey"])
def test_sources_that_overlap_are_no_alarm(tmp_path, words):
    """Two fifths of train and three fifths of val are of the second source: the medians are far apart."""
    draw(tmp_path, lambda k: (SOURCES[words] if (k % 5 < 2) == (k <= 100) else noise)(k), counts=(10, 10))
    assert checked(tmp_path)[0] == []


def test_an_image_or_two_are_not_compared(tmp_path):
    draw(tmp_path, lambda k: noise(k, low=200) if k > 100 else noise(k), counts=(8, 2))
    assert checked(tmp_path)[0] == []


EMPTY = {
    "no annotation": lambda v: v.update(annotations=[]),
    "12 x crowd region": lambda v: [a.update(iscrowd=1, bbox=[2, 2, 9, 9]) for a in v["annotations"]],
    "12 x box without a usable mask": lambda v: [
        a.update(bbox=[2, 2, 9, 9], segmentation=[]) for a in v["annotations"]
    ],
    "12 x outside the image": lambda v: [
        a.update(bbox=[500, 2, 9, 9], segmentation=[square(3, 500)]) for a in v["annotations"]
    ],
    "5 x crowd region, 4 x box without a usable mask, 3 x unknown category": lambda v: [
        *(a.update(iscrowd=1) for a in v["annotations"][:5]),
        *(a.update(bbox=[2, 2, 9, 9], segmentation=[]) for a in v["annotations"][5:9]),
        *(a.update(category_id=9) for a in v["annotations"][9:]),
    ],
}


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("reason", EMPTY)
def test_a_split_without_an_object_stops_training(tmp_path, reason, split):
    data = draw(tmp_path / "data", counts=(4, 4))
    edit(data, split, EMPTY[reason])
    report = check(data)
    stops = [(f.split, f.problem, f.detail) for f in report.findings if f.consequence == STOPS]
    assert stops == [(split, "no usable object", f"4 images hold {reason}; annotate objects with masks")]
    assert report.fault
    with pytest.raises(InputError, match=f"{split}.json has no object that training can use: 4 images hold {reason}"):
        train(load_recipe("shapes"), data, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.csv").exists()


def test_a_test_split_may_have_no_object(tmp_path):
    draw(tmp_path, counts=(4, 3, 3), splits=("train", "val", "test"))
    edit(tmp_path, "test", lambda v: v.update(annotations=[]))
    findings = check(tmp_path).findings
    assert [(f.split, f.problem) for f in findings] == [("test", "no object here"), ("test", "unused category")]
    assert {f.consequence for f in findings} == {KEPT}
    assert check(tmp_path).fault is None


def test_classes_without_an_object_are_named_before_training(tmp_path, caplog):
    draw(tmp_path)
    for split in ("train", "val"):
        names = [{"id": k, "name": f"class {k}"} for k in range(1, 9)]
        edit(tmp_path, split, lambda v, names=names: v.update(categories=names))
    edit(tmp_path, "train", lambda v: [a.update(category_id=k % 8 + 1) for k, a in enumerate(v["annotations"])])
    assert said(tmp_path, caplog) == [
        "val: unused category: no object of class 2, class 3, class 4, class 5, class 6 and 2 others"
    ]


def test_a_sample_of_a_large_split_is_read(tmp_path, caplog, monkeypatch):
    draw(tmp_path, lambda k: noise(k, (8, 8)), [[square(2, 2, 3)]], counts=(30, 10))
    read = []
    monkeypatch.setattr(judge, "_SAMPLED", 6)
    monkeypatch.setattr(judge, "look_at", lambda *words: read.append(words[3]) or look_at(*words))
    assert said(tmp_path, caplog) == []
    assert len(read) == 12
    edit(tmp_path, "train", lambda v: v.update(annotations=v["annotations"][3:4]))  # not in the sample
    assert said(tmp_path, caplog) == []
    edit(tmp_path, "train", lambda v: v["categories"].append({"id": 2, "name": "rare"}))
    assert said(tmp_path, caplog) == [
        "train: unused category: no object of rare",
        "val: unused category: no object of rare",
    ]
    edit(tmp_path, "train", lambda v: v["annotations"][0].update(iscrowd=1))
    with pytest.raises(InputError, match="30 images hold 1 x crowd region"):
        said(tmp_path, caplog)


def test_of_a_large_image_only_some_pixels_are_read(tmp_path, caplog, monkeypatch):
    draw(tmp_path, lambda k: noise(k, (1200, 1600), high=60000), [[square(100, 100, 40)]], counts=(1, 1))
    before, shapes = said(tmp_path, caplog), []
    monkeypatch.setattr(judge, "_LARGE", 1 << 20)
    monkeypatch.setattr(judge, "look_at", lambda *words: shapes.append(words[0].shape) or look_at(*words))
    assert said(tmp_path, caplog) == before == []
    assert shapes == [(3, 600, 800)] * 2


def test_a_split_without_images_is_found(tmp_path):
    draw(tmp_path, counts=(4, 4))
    edit(tmp_path, "val", lambda v: v.update(images=[], annotations=[]))
    assert ("val", "no usable object") in checked(tmp_path)[0]
