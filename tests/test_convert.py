"""Data sets written as YOLO segmentation and as label images, and read again."""

import csv
import json
import os
from functools import partial

import numpy as np
import pytest
import tifffile
import yaml
from contracts import fails
from PIL import Image

from masklab.cli.app import main
from masklab.datasets.convert import convert
from masklab.datasets.layouts.label_classes import CLASSES, OBJECT_CLASSES
from masklab.datasets.open import open_split
from masklab.datasets.problems import CollectingSink
from masklab.masks import encode, polygons, rle
from masklab.masks.coco_segmentation import rle_from_segmentation

SIZE = (40, 50)
CATEGORIES = [{"id": 7, "name": "leaf"}, {"id": 3, "name": "no"}, {"id": 20, "name": 'früchte, "ripe"'}]


def runs(mask):
    return encode.encode_windows([mask], [[0, 0]], mask.shape)[0]


def bits(counts, size=SIZE):
    return rle.window(counts, size, (0, 0, size[1], size[0])).astype(bool)


def box(x1, y1, x2, y2):
    mask = np.zeros(SIZE, bool)
    mask[y1:y2, x1:x2] = True
    return mask


RING = box(2, 2, 20, 20) & ~box(5, 5, 10, 9) & ~box(12, 12, 18, 19)
PARTS = box(25, 0, 30, 4) | box(40, 10, 50, 40) | box(31, 20, 33, 22)
ISLAND = box(6, 6, 8, 8)
FAINT = np.eye(*SIZE, dtype=bool) & box(20, 20, 38, 38)  # pixels that touch at corners only
SHAPES = {"ring": RING, "parts": PARTS, "ring and island": RING | ISLAND | PARTS, "faint": FAINT}


def dataset(folder, images, crowds=(), names=("a.png", "b.png", "c.png")):
    """A COCO folder with splits train and val; ``images`` are lists of (category id, mask)."""
    for split, first in (("train", 0), ("val", 1)):
        values = {"images": [], "annotations": [], "categories": CATEGORIES}
        for k, (name, objects) in enumerate(zip(names[first:], images[first:], strict=True), 1):
            (folder / split / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", SIZE[::-1], (k, 50 * first, 0)).save(folder / split / name)
            values["images"].append({"id": k, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
            marked = [(*each, 0) for each in objects] + [(7, mask, 1) for mask in crowds]
            for category, mask, crowd in marked:
                (coded,) = rle.rle_to_coco([runs(mask)], SIZE)
                number = len(values["annotations"]) + 1
                one = {"id": number, "image_id": k, "category_id": category, "segmentation": coded, "iscrowd": crowd}
                x1, y1, x2, y2 = rle.bounds(runs(mask), SIZE)
                values["annotations"].append({**one, "area": int(mask.sum()), "bbox": [x1, y1, x2 - x1, y2 - y1]})
        (folder / f"{split}.json").write_text(json.dumps(values))
    return folder


IMAGES = [[(7, RING), (20, PARTS)], [(3, FAINT), (7, ISLAND)], []]


def found(split):
    """Class name and mask of each object, by image."""
    held = [(entry.path.name, split.objects(k)) for k, entry in enumerate(split.images)]
    return {
        name: [(split.categories.names[o.labels[row]], bits(o.rle(row))) for row in range(len(o))] for name, o in held
    }


def same(one, two, least=1.0):
    assert one.keys() == two.keys()
    for name in one:
        assert [each for each, _ in one[name]] == [each for each, _ in two[name]]
        for (_, mask), (_, other) in zip(one[name], two[name], strict=True):
            assert (mask & other).sum() >= least * (mask | other).sum()


@pytest.mark.parametrize("format", ["coco", "yolo", "label_images"])
def test_what_is_written_reads_the_same(tmp_path, format):
    dataset(tmp_path / "src", IMAGES)
    written = convert(tmp_path / "src", tmp_path / "dst", format=format)
    assert list(written) == ["train", "val"]
    for name in ("train", "val"):
        before, after = open_split(tmp_path / "src", name), open_split(tmp_path / "dst", name)
        same(found(before), found(after))
        assert after.categories.names == before.categories.names
        if format != "yolo":
            assert after.categories.ids == before.categories.ids
        for image in before.images:
            (there,) = [one.path for one in after.images if one.path.name == image.path.name]
            assert there.read_bytes() == image.path.read_bytes()
        assert not written[name].lost
        assert written[name].place.exists()
    assert json.loads((tmp_path / "dst/split.json").read_text())["val"]["images"] == ["b.png", "c.png"]


def test_yolo_is_written_as_its_own_tools_expect(tmp_path):
    dataset(tmp_path / "src", IMAGES)
    convert(tmp_path / "src", tmp_path / "dst", format="yolo")
    table = yaml.safe_load((tmp_path / "dst/data.yaml").read_text(encoding="utf-8"))
    assert table == {
        "train": "images/train",
        "val": "images/val",
        "names": {0: "no", 1: "leaf", 2: 'früchte, "ripe"'},
    }
    lines = (tmp_path / "dst/labels/train/a.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2"]
    places = np.array(lines[1].split()[1:], float)
    assert places.min() >= 0
    assert places.max() <= 1
    assert (tmp_path / "dst/labels/val/c.txt").read_text() == "", "an image without objects is said to have none"


@pytest.mark.parametrize("mask", SHAPES.values(), ids=SHAPES)
def test_one_outline_fills_the_same_pixels(mask):
    ring = polygons.joined(polygons.rle_to_polygons(runs(mask), SIZE))
    again = rle_from_segmentation([ring.ravel().astype(float).tolist()], SIZE)
    assert (bits(again) == mask).all()


def test_outlines_of_any_mask_are_exact():
    """Noise of every density: hundreds of parts and holes, at the edges of the image as well."""
    rng = np.random.default_rng(5)
    for density in (0.02, 0.3, 0.5, 0.7, 0.98):
        mask = rng.random((61, 47)) < density
        ring = polygons.joined(polygons.rle_to_polygons(runs(mask), mask.shape))
        places = np.array([f"{v:.7g}" for v in (ring / mask.shape[::-1]).ravel()], float).reshape(-1, 2)
        again = rle_from_segmentation([(places * mask.shape[::-1]).ravel().tolist()], mask.shape)
        assert (bits(again, mask.shape) == mask).all()


def test_joining_lines_lie_between_near_corners():
    ring = polygons.joined(polygons.rle_to_polygons(runs(PARTS), SIZE))
    ends = np.stack((ring, np.roll(ring, -1, axis=0)), axis=1)
    slanted = ends[(ends[:, 0] != ends[:, 1]).all(axis=1)]
    there = {tuple(map(tuple, line)) for line in slanted.tolist()}
    assert len(slanted) == 4, "two lines, each there and back"
    assert there == {(b, a) for a, b in there}
    assert max(np.linalg.norm(np.subtract(a, b)) for a, b in there) < 17


def test_large_outlines_are_joined_in_bounded_time_and_memory(monkeypatch):
    rings = [np.stack((np.arange(400_000) + start, np.zeros(400_000, np.int64)), axis=1) for start in (0, 500_000)]
    place, other = polygons._near_corners(*rings)
    assert place > 399_000
    assert other == 0
    monkeypatch.setattr(polygons, "_MOST_CORNERS", 8)
    mask = np.random.default_rng(0).random((60, 60)) < 0.5
    ring = polygons.joined(polygons.rle_to_polygons(runs(mask), mask.shape))
    assert (bits(rle_from_segmentation([ring.ravel().tolist()], mask.shape), mask.shape) == mask).all()


@pytest.mark.parametrize("format", ["yolo", "label_images"])
def test_crowd_regions_are_left_out_and_counted(tmp_path, format, capsys):
    dataset(tmp_path / "src", IMAGES, crowds=[box(0, 30, 10, 40)])
    assert main(["data", "convert", str(tmp_path / "src"), str(tmp_path / "dst"), "--format", format]) == 0
    out = capsys.readouterr().out
    assert "lost: 3 crowd regions left out" in out
    assert "lost: 2 crowd regions left out" in out
    same(found(open_split(tmp_path / "dst", "train")), found(open_split(tmp_path / "src", "train")))


def test_smaller_objects_lie_over_larger_ones_and_what_is_lost_is_said(tmp_path, capsys):
    large, small = box(0, 0, 30, 30), box(5, 5, 10, 10)
    dataset(tmp_path / "src", [[(7, small), (3, large), (7, small)], [], []])
    assert main(["data", "convert", str(tmp_path / "src"), str(tmp_path / "dst"), "--format", "label_images"]) == 0
    objects = found(open_split(tmp_path / "dst", "train"))["a.png"]
    assert [name for name, _ in objects] == ["no", "leaf"], "of two equal objects the later is on top"
    assert (objects[0][1] == (large & ~small)).all()
    assert (objects[1][1] == small).all()
    out = capsys.readouterr().out
    assert "train lost: 1 objects that smaller ones cover wholly" in out
    assert "train lost: 1 objects that lost pixels" in out
    assert "val lost" not in out


def test_labels_are_16_bits_and_32_where_they_must_be(tmp_path, monkeypatch):
    dataset(tmp_path / "src", IMAGES)
    convert(tmp_path / "src", tmp_path / "dst", format="label_images")
    with Image.open(tmp_path / "dst/train/masks/a.png") as mask:
        assert mask.mode == "I;16"
        assert np.unique(np.asarray(mask)).tolist() == [0, 1, 2]
    monkeypatch.setattr("masklab.datasets.writers.label_images._MOST_IN_16_BITS", 1)
    convert(tmp_path / "src", tmp_path / "out", format="label_images")
    assert tifffile.imread(tmp_path / "out/train/masks/a.tif").dtype == np.uint32
    same(found(open_split(tmp_path / "out", "train")), found(open_split(tmp_path / "src", "train")))


def test_without_classes_there_are_no_tables(tmp_path):
    (tmp_path / "src/images").mkdir(parents=True)
    (tmp_path / "src/masks").mkdir()
    for name in "abc":
        Image.new("RGB", SIZE[::-1]).save(tmp_path / f"src/images/{name}.png")
        Image.fromarray(RING + 3 * PARTS.astype(np.uint8)).save(tmp_path / f"src/masks/{name}.png")
    convert(tmp_path / "src", tmp_path / "dst", format="label_images")
    assert not list((tmp_path / "dst").rglob("*.csv"))
    same(found(open_split(tmp_path / "dst", "train")), found(open_split(tmp_path / "src", "train")))


def test_tables_of_classes_can_be_read_by_people(tmp_path):
    dataset(tmp_path / "src", IMAGES)
    convert(tmp_path / "src", tmp_path / "dst", format="label_images")
    with open(tmp_path / "dst" / CLASSES, encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [["id", "name"], ["3", "no"], ["7", "leaf"], ["20", 'früchte, "ripe"']]
    with open(tmp_path / "dst/train" / OBJECT_CLASSES, encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[:2] == [["mask", "label", "class_id", "class"], ["a.png", "1", "7", "leaf"]]


def test_an_object_without_class_is_reported(tmp_path):
    dataset(tmp_path / "src", IMAGES)
    convert(tmp_path / "src", tmp_path / "dst", format="label_images")
    path = tmp_path / "dst/train" / OBJECT_CLASSES
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([lines[0], lines[2].replace("20", "21"), *lines[3:]]), encoding="utf-8")
    sink = CollectingSink()
    assert found(open_split(tmp_path / "dst", "train", sink=sink))["a.png"] == []
    assert [(p.name, p.file_name) for p in sink.problems] == [("unknown category", "a.png")] * 2
    assert "label 1 has no line" in sink.problems[0].detail
    assert "does not list" in sink.problems[1].detail
    assert open_split(tmp_path / "dst", "train").skipped == {"unknown category": 2}


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (CLASSES, b"", ["classes.csv line 1", "id,name"]),
        (CLASSES, b"id,name\n", ["lists no class"]),
        (CLASSES, b"id,name\n3,a\n3,b\n", ["line 3", "of its own"]),
        (CLASSES, b"id,name\nx,a\n", ["line 2"]),
        (CLASSES, b'id,name\n1,"a\n', ["cannot be read"]),
        (CLASSES, b"\xff\xfe\xff", ["cannot be read"]),
        (f"train/{OBJECT_CLASSES}", b"label,class\n1,2\n", ["line 1", "mask,label,class_id,class"]),
        (f"train/{OBJECT_CLASSES}", b"mask,label,class_id,class\na.png,1\n", ["line 2"]),
        (f"train/{OBJECT_CLASSES}", b"mask,label,class_id,class\na.png,1,7,leaf\na.png,1,3,no\n", ["line 3"]),
        (f"train/{OBJECT_CLASSES}", b"mask,label,class_id,class\na.png,1.5,7,leaf\n", ["line 2", "whole number"]),
    ],
)
def test_broken_tables_are_named(tmp_path, name, change, words):
    dataset(tmp_path / "src", IMAGES)
    convert(tmp_path / "src", tmp_path / "dst", format="label_images")
    (tmp_path / "dst" / name).write_bytes(change)
    fails(words, open_split, tmp_path / "dst", "train")


def test_a_table_that_is_missing_is_named(tmp_path):
    dataset(tmp_path / "src", IMAGES)
    convert(tmp_path / "src", tmp_path / "dst", format="label_images")
    (tmp_path / "dst" / CLASSES).unlink()
    fails(["classes.csv"], open_split, tmp_path / "dst", "train")


@pytest.mark.parametrize("format", ["yolo", "label_images"])
def test_images_that_differ_in_folder_suffix_or_case_stay_apart(tmp_path, format):
    names = ("x/a.png", "y/a.png", "x/A.tif", "b.ome.tif", "b.png", "y_a.png", ".c.png")
    if os.path.exists(__file__.upper()):
        pytest.skip("this file system does not tell case apart")
    masks = [[(7, box(k, k, k + 5, k + 9))] for k in range(len(names))]
    dataset(tmp_path / "src", masks, names=names)
    convert(tmp_path / "src", tmp_path / "dst", format=format)
    before, after = open_split(tmp_path / "src", "train"), open_split(tmp_path / "dst", "train")
    assert len(after) == len(names)
    key = {image.path.read_bytes(): k for k, image in enumerate(before.images)}
    for k, image in enumerate(after.images):
        one = before.objects(key[image.path.read_bytes()])
        assert (after.objects(k).rle(0) == one.rle(0)).all()


def test_an_image_that_no_folder_would_show_is_refused(tmp_path):
    dataset(tmp_path / "src", IMAGES)
    text = (tmp_path / "src/train.json").read_text().replace("a.png", "a.image")
    (tmp_path / "src/train.json").write_text(text)
    (tmp_path / "src/train/a.png").rename(tmp_path / "src/train/a.image")
    fails(["a.image", "rename it"], partial(convert, format="yolo"), tmp_path / "src", tmp_path / "dst")
    assert not (tmp_path / "dst").exists()


def test_a_conversion_that_fails_midway_leaves_nothing(tmp_path):
    dataset(tmp_path / "src", IMAGES)
    values = json.loads((tmp_path / "src/val.json").read_text())
    values["categories"][0]["name"] = "other"
    (tmp_path / "src/val.json").write_text(json.dumps(values))
    fails(["val.json", "category 7", "leaf"], partial(convert, format="yolo"), tmp_path / "src", tmp_path / "dst")
    assert [path.name for path in tmp_path.iterdir()] == ["src"]
