"""Datumaro's own format, written as its `DatumaroExporter` does."""

import json

import numpy as np
import pytest
from outlines import (
    BITMAP,
    BLOB,
    SIZE,
    STAR,
    assert_objects,
    ellipse,
    image,
    objects,
    opened,
    placed,
    raster,
    rectangle,
)
from pycocotools import mask as coco_mask

from masklab.datasets.open import open_split, split_names
from masklab.utils.errors import InputError


def annotation(kind, label=0, group=0, attributes=None, **values):
    own = {"id": 0, "type": kind, "attributes": attributes or {}, "group": group, "label_id": label, **values}
    return own | {"z_order": 0}


def polygon(points, label=0, group=0, **attributes):
    return annotation("polygon", label, group, attributes, points=[float(value) for point in points for value in point])


def mask(bits, label=0, group=0):
    rle = coco_mask.encode(np.asfortranarray(bits.astype(np.uint8)))
    counts = {"counts": rle["counts"].decode("ascii"), "size": [int(side) for side in rle["size"]]}
    return annotation("mask", label, group, rle=counts)


def item(name, annotations, path=None, size=SIZE):
    return {"id": name, "annotations": annotations, "image": {"path": path or f"{name}.png", "size": list(size)}}


def write(path, items, labels=("leaf", "door")):
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [{"name": name, "parent": "", "attributes": []} for name in labels]
    values = {"dm_format_version": "1.0", "media_type": 2, "infos": {}}
    values |= {"categories": {"label": {"labels": names, "label_groups": [], "attributes": []}}, "items": items}
    path.write_text(json.dumps(values), encoding="utf-8")


def test_every_annotation(tmp_path):
    image(tmp_path / "images" / "default" / "a.png")
    image(tmp_path / "images" / "default" / "empty.png")
    whole = placed(BITMAP, 40, 60)
    found = [
        polygon(BLOB),
        mask(whole, 1),
        annotation("ellipse", 1, points=[30.0, 40.0, 270.0, 200.0]),
        annotation("bbox", 1, bbox=[30.0, 20.0, 220.0, 180.0]),
        annotation("label"),
        {"id": 0, "type": "caption", "attributes": {}, "group": 0, "caption": "a leaf"},
        annotation("polyline", points=[1.0, 2.0, 3.0, 4.0]),
        annotation("points", points=[1.0, 2.0], visibility=[2]),
    ]
    write(tmp_path / "annotations" / "default.json", [item("a", found), item("empty", [])])
    split, problems = opened(tmp_path)
    assert_objects(
        split,
        "images/default/a.png",
        ("leaf", raster(BLOB)),
        ("door", whole),
        ("door", ellipse(150, 120, 120, 80)),
        ("door", rectangle(30, 20, 250, 200)),
    )
    assert (objects(split, "images/default/a.png")[1][1] == whole).all()
    assert objects(split, "images/default/empty.png") == []
    assert [detail.split("'")[1] for _, detail in problems] == ["polyline", "points"]
    assert split.categories.names == ("leaf", "door")


def test_parts_of_a_group_are_one_object_without_its_box(tmp_path):
    image(tmp_path / "images" / "a.png")
    left, right = [(10, 10), (90, 10), (90, 200), (10, 200)], [(200, 10), (290, 10), (290, 200), (200, 200)]
    found = [
        annotation("bbox", group=3, bbox=[10.0, 10.0, 280.0, 190.0]),
        polygon(left, group=3),
        polygon(right, group=3),
        polygon(left),
        polygon(right),
        annotation("bbox", group=4, bbox=[10.0, 10.0, 80.0, 190.0]),
    ]
    write(tmp_path / "annotations" / "default.json", [item("a", found)])
    split, problems = opened(tmp_path)
    assert not problems
    both = raster(left) | raster(right)
    wanted = [both, raster(left), raster(right), raster(left)]
    assert_objects(split, "images/a.png", *[("leaf", one) for one in wanted])


def test_crowd_regions(tmp_path):
    image(tmp_path / "images" / "a.png")
    write(
        tmp_path / "annotations" / "default.json",
        [item("a", [polygon(BLOB, is_crowd=True), polygon(STAR, is_crowd=False)])],
    )
    split, _ = opened(tmp_path)
    assert [crowd for _, _, crowd in objects(split, "images/a.png")] == [1, 0]


def test_splits_are_files(tmp_path):
    for split in ("Train", "validation", "test"):
        image(tmp_path / "images" / split / "sub_a.png")
        write(tmp_path / "annotations" / f"{split}.json", [item("sub/a", [polygon(BLOB)], "sub_a.png")])
    assert split_names(tmp_path) == ["test", "train", "val"]
    for split, name in (("Train", "train"), ("validation", "val"), ("test", "test")):
        assert_objects(opened(tmp_path, name)[0], f"images/{split}/sub_a.png", ("leaf", raster(BLOB)))


def test_classes_are_matched_by_name(tmp_path):
    for split, labels in (("train", ("leaf", "door")), ("val", ("door", "wall"))):
        image(tmp_path / "images" / split / "a.png")
        write(tmp_path / "annotations" / f"{split}.json", [item("a", [polygon(BLOB)])], labels)
    split, _ = opened(tmp_path, "val")
    assert_objects(split, "images/val/a.png", ("door", raster(BLOB)))
    assert split.categories.names == ("leaf", "door", "wall")


@pytest.mark.parametrize("given", [{}, {"image": {}}, {"image": {"path": ""}}, {"image": None}])
def test_an_item_without_path_is_the_image_of_its_id(tmp_path, given):
    image(tmp_path / "images" / "default" / "a.b.png")
    values = {"id": "a.b", "annotations": [polygon(BLOB)], **given}
    write(tmp_path / "annotations" / "default.json", [values])
    assert_objects(opened(tmp_path)[0], "images/default/a.b.png", ("leaf", raster(BLOB)))


def test_broken_annotations_are_reported(tmp_path):
    image(tmp_path / "images" / "a.png")
    bad = [
        polygon(BLOB[:2]),
        annotation("polygon"),
        annotation("polygon", points=[1, 2, 3, 4, 5]),
        annotation("polygon", points=[1, 2, 3, 4, 5, None]),
        annotation("mask"),
        mask(np.ones((5, 5))),
        annotation("mask", rle={"counts": "~~~~", "size": list(SIZE)}),
        annotation("bbox", bbox=[1, 2, 3]),
        annotation("ellipse", points=[1, 2, "x", 4]),
        polygon(BLOB, 9),
        polygon(BLOB, None),
        polygon(BLOB, -1),
        annotation(["polygon"]),
    ]
    write(tmp_path / "annotations" / "default.json", [item("a", [*bad, polygon(BLOB)])])
    split, problems = opened(tmp_path)
    assert_objects(split, "images/a.png", ("leaf", raster(BLOB)))
    assert [name for name, _ in problems] == ["images/a.png"] * len(bad)
    assert [detail.split(" ", 2)[2] for _, detail in problems[9:12]] == ["has no class"] * 3


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ([annotation("bbox", bbox=[1.0, 2.0, 30.0, 40.0])], r"holds boxes only \(1 rectangles of Datumaro\)"),
        ([annotation("label")], r"holds no outlines \(0 shapes of Datumaro\)"),
    ],
)
def test_data_without_masks_are_refused(tmp_path, found, words):
    image(tmp_path / "images" / "a.png")
    write(tmp_path / "annotations" / "default.json", [item("a", found)])
    with pytest.raises(InputError, match=words):
        open_split(tmp_path, "all")


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([{"annotations": []}], "an item has no id"),
        ([7], "an item has no id"),
        ([{"id": "a", "annotations": 3}], "the annotations of the item a are no list"),
        ([{"id": "a", "annotations": [3]}], "the annotations of the item a are no list"),
        ([{"id": "a", "annotations": [], "video_frame": {}}], "the item a is no image"),
        ({}, "no categories or no items"),
    ],
)
def test_a_broken_file_is_named(tmp_path, items, words):
    image(tmp_path / "images" / "a.png")
    write(tmp_path / "annotations" / "default.json", items)
    with pytest.raises(InputError, match=rf"default\.json:? .*{words}|default\.json.*{words}"):
        open_split(tmp_path, "all")


@pytest.mark.parametrize("categories", [{"label": 3}, {"label": {"labels": [1]}}, {"label": {"labels": "x"}}, []])
def test_broken_categories_are_named(tmp_path, categories):
    write_categories(tmp_path, categories)
    with pytest.raises(InputError, match=r"default\.json"):
        open_split(tmp_path, "all")


@pytest.mark.parametrize("categories", [{"label": []}, {"label": None}, {}, {"label": {"labels": []}}])
def test_without_categories_there_is_one_class(tmp_path, categories):
    write_categories(tmp_path, categories)
    assert_objects(opened(tmp_path)[0], "images/a.png", ("object", raster(BLOB)))


def write_categories(folder, categories):
    image(folder / "images" / "a.png")
    values = {"dm_format_version": "1.0", "categories": categories, "items": [item("a", [polygon(BLOB, None)])]}
    (folder / "annotations").mkdir()
    (folder / "annotations" / "default.json").write_text(json.dumps(values))
